"""Processes that end with the one that started them."""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """From now on, receive SIGTERM when the process that started this one dies, however it dies (Linux only).

    A killed workflow would otherwise leave its trainings running, in the way of the next start.
    """
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGTERM)
