"""Signals that end a training after the step it is in, so that its state can be saved whole."""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit
_noted: list[str] = []  # of this process, since a training was last begun


def signalled() -> str:
    """The first signal that has come while the training at work is to end; empty where none has."""
    return _noted[0] if _noted else ""


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.name` is empty until one of SIGNALS comes; a second one raises."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> "Interrupt":
        self._previous = {}
        _noted.clear()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt(self.name)
        self.name = signal.Signals(number).name
        _noted.append(self.name)
