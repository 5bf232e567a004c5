"""Progress of a training: a bar on a terminal, a plain line every few seconds in a log."""

import logging
import sys
import time
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from iakd.experiment.run_dir import Row

SECONDS_BETWEEN_LINES = 10.0

log = logging.getLogger(__name__)


class Progress:
    """`with Progress(name, epochs) as progress:` — call `progress.show(row)` after each epoch.

    Trainings in one process share a display, with a bar each: a terminal can hold only one display at a time.
    """

    _shared: ClassVar[Bar | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, name: str, epochs: int) -> None:
        self.name = name
        self.epochs = epochs
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._first: int | None = None
        if sys.stderr.isatty():
            if Progress._shared is None:
                Progress._shared = _bars()
                Progress._shared.start()
            Progress._users += 1
            self._bar = Progress._shared
            self._task = self._bar.add_task(self.name, total=self.epochs, numbers="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            Progress._users -= 1
            if not Progress._users:
                self._bar.stop()
                Progress._shared = None

    def show(self, row: Row) -> None:
        """Show the epoch that `row` records."""
        epoch = int(row["epoch"] or 0)
        self._first = self._first if self._first is not None else epoch - 1
        numbers = f"loss {row['loss']:.3f} {row['images_per_s']:.0f} images/s"
        if row.get("val_top1") is not None:
            numbers += f" val {row['val_top1']:.1f} %"
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=epoch, numbers=numbers)
        elif now >= self._next_line or epoch == self.epochs:
            left = (now - self._started) / (epoch - self._first) * (self.epochs - epoch)
            log.info("%s: epoch %d/%d %s, %.0f s left", self.name, epoch, self.epochs, numbers, left)
            self._next_line = now + SECONDS_BETWEEN_LINES


def _bars() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs {task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
