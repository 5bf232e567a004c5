"""Processes that end with the one that started them, that do one thing together, and how many make sense."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

PR_SET_PDEATHSIG = 1
WITH_PARENT = "IAKD_WITH_PARENT"  # in the environment of a process that is to end with its parent
MEETING = "IAKD_MEETING"  # address at which processes that train together find each other; without, torchrun's
PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", MEETING)  # in the environment of such processes
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_FOLLOW = 15.0  # in which a process notices by itself that another one is gone, and again after a signal
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit


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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_parent(parent: int) -> None:
    """Make this process a helper of `parent`: it ends when that ends or sends SIGTERM, and at no other signal.

    Ctrl-C, a cluster's warning and its end of a job go to all processes of a group. Then the parent finishes the
    step that it is in and saves its state, and needs its helpers until it has.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_at_signal_of, args=(parent,), daemon=True).start()
    end_with_parent(signal.SIGKILL, parent)


def _end_at_signal_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def place() -> tuple[int, int]:
    """Which one of how many processes this is that train together, as torchrun has it; (0, 1) by itself."""
    rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(count)) if rank.isdigit() and count.isdigit() and int(count) > 1 else (0, 1)


def several(command: list[str], count: int) -> int:
    """Run `command` as so many processes that train together; returns the exit code that one of them would have.

    Their environment is what torchrun would set, but that they meet at a file. Signals are passed on. Where one ends
    with an error or is killed, so do the others.
    """
    with tempfile.TemporaryDirectory(prefix="iakd-") as folder:
        shared = {WITH_PARENT: "1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared[MEETING] = f"file://{folder}/meeting"
        children: list[subprocess.Popen[bytes]] = []

        def pass_on(number: int, frame: Any) -> None:
            for child in children:
                child.send_signal(number)

        for number in STOP_SIGNALS:
            signal.signal(number, pass_on)
        for rank in range(count):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # in a session of its own, or Ctrl-C would reach it twice
            child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            children.append(child)
        return _code(children)


def _code(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all of them to end, and see to it where one has failed."""
    ways = [signal.SIGTERM, signal.SIGKILL]
    deadline: float | None = None
    while [child for child in children if child.poll() is None]:
        failed = any(child.returncode for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + SECONDS_TO_FOLLOW
        if deadline and time.monotonic() > deadline and ways:
            number, deadline = ways.pop(0), time.monotonic() + SECONDS_TO_FOLLOW
            for child in children:
                child.send_signal(number)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    first = children[0].returncode
    if first < 0:  # else it has said what is wrong
        how = signal.Signals(-first).name
        print(f"iakd: a process was ended by {how}; run the same command again and it goes on", file=sys.stderr)
    return first if first > 0 else int(any(child.returncode for child in children))


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.name` is empty until a stop signal arrives; a second one raises."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt(self.name)
        self.name = signal.Signals(number).name
