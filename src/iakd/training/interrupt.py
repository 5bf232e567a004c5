"""Signals that end a training after the step it is in, so that its state can be saved whole."""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # USR1: Slurm's warning before the time limit


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.name` is empty until one of SIGNALS comes; a second one raises."""

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> "Interrupt":
        self._previous = {}
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
