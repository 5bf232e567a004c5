"""Processes that end with the one that started them, and how many make sense."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

PR_SET_PDEATHSIG = 1
FOR_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}  # what a process acts on for its helpers, too


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent(number: signal.Signals = signal.SIGTERM, parent: int | None = None) -> None:
    """From now on, receive this signal when the process that started this one dies, however it dies (Linux only).

    A killed workflow would otherwise leave its trainings running, in the way of the next start. `parent`: its
    number, where it is known; it may be dead already.
    """
    if sys.platform != "linux":
        return
    import ctypes

    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """While a helper is forked: signals wait, in this process until the end of the block, in the helper for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent(parent: int) -> None:
    """Make this process a helper of `parent`: it ends when that ends or sends SIGTERM, and at no other signal.

    Ctrl-C, a cluster's warning and its end of a job go to all processes of a group. Then the parent finishes the
    step that it is in and saves its state, and needs its helpers until it has.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_PARENT)
    threading.Thread(target=_end_at_signal_of, args=(parent,), daemon=True).start()
    end_with_parent(signal.SIGKILL, parent)


def _end_at_signal_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
