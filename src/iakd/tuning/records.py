"""What is known about the trials of a study."""

from dataclasses import dataclass, field
from typing import Any

FINISHED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Record:
    """A trial as everybody knows it."""

    number: int
    state: str  # waiting, running, complete, pruned, failed
    values: dict[str, Any]  # its parameters: the kind of schedule and what that kind uses
    origin: str  # first: named by the settings; sampler
    value: float | None = None  # validation accuracy, percent; of a pruned trial: when it was given up
    reports: dict[int, float] = field(default_factory=dict)  # epoch -> validation accuracy, percent
    memory: dict[str, Any] = field(default_factory=dict)  # what the pruner noted about it
    reason: str | None = None  # why it failed

    @property
    def finished(self) -> bool:
        """Whether nothing about it will change."""
        return self.state in FINISHED
