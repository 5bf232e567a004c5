"""The kinds of swap-probability schedule, once: name, shape and settings, for params.yaml, studies and training alike.

`interactive.schedule` turns a schedule into p_i(t). A new kind is an entry of `KINDS`, with a field of `Schedule` and
of `config.tuning.Space` for each setting that no other kind has (docs/extending.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from iakd.config.base import Fraction, Strict, did_you_mean


def _known(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"unknown kind {name!r}{did_you_mean(name, KINDS)}; known: {', '.join(KINDS)}")
    return name


def _names(schema: dict[str, Any]) -> None:
    schema["enum"] = list(KINDS)


ScheduleKind = Annotated[str, AfterValidator(_known), Field(json_schema_extra=_names)]


class Schedule(Strict):
    """p(t), the probability that a student block is KEPT, over the progress t ∈ [0, 1] of the training."""

    kind: ScheduleKind = Field("linear", description="shape of p(t): docs/method.md")
    p0: Fraction = Field(0.5, description="p at the start")
    p1: Fraction = Field(1.0, description="p at t_end; not used by uniform")
    t_end: float = Field(0.8, gt=0, le=1, description="progress at which p1 is reached (review: of each phase)")
    slope: float = Field(0.0, ge=-2, le=2, description="tilt over depth: the last block's p minus the first's")
    student_only: Fraction = Field(0.2, description="share of the training, at its end, with p = 1: no swaps")
    cycles: int = Field(
        3, gt=0, le=1000, description="cyclic: waves; review: phases, if the learning rate has no drops"
    )
    steps: int = Field(4, gt=0, description="step: number of equal steps from p0 to p1")
    steepness: float = Field(  # below, it is a line; far above, a jump
        10.0, ge=0.001, le=1000, description="sigmoid: slope in the middle; with 10 it is nearly flat at both ends"
    )

    @property
    def never_swaps(self) -> bool:
        """Whether p is 1 throughout."""
        ends = {self.p0, self.p1} if "p1" in KINDS[self.kind].settings else {self.p0}
        return self.student_only == 1 or (ends == {1} and not self.slope)


@dataclass(frozen=True)
class Kind:
    """A kind of schedule: p goes from p0 towards p1 as `shape` goes from 0 towards 1.

    `shape` is a function of the schedule and of the progress x ∈ [0, 1] through a phase; x reaches 1 at `t_end` of the
    phase where the kind uses that setting. A phase is the whole training, one of `cycles` equal parts, or, for
    `lr_drops`, what lies between two drops of the learning rate; without drops these are `cycles`, too.
    """

    summary: str
    settings: tuple[str, ...]  # used beside p0, slope and student_only
    shape: Callable[[Schedule, float], float]
    phases: Literal["one", "cycles", "lr_drops"] = "one"


def _stairs(s: Schedule, x: float) -> float:
    if s.steps == 1:
        return float(x >= 1)
    return min(math.floor(x * s.steps), s.steps - 1) / (s.steps - 1)


def _sigmoid(s: Schedule, x: float) -> float:
    """The logistic function of steepness·(x − ½), rescaled so that it starts at 0 and ends at 1.

    Written with tanh(z/2) = 2/(1 + e^−z) − 1, which does not overflow.
    """
    return (1 + math.tanh(s.steepness * (x - 0.5) / 2) / math.tanh(s.steepness / 4)) / 2


KINDS: dict[str, Kind] = {
    "uniform": Kind("p0 throughout", (), lambda s, x: 0.0),
    "linear": Kind("linear growth", ("p1", "t_end"), lambda s, x: x),
    "review": Kind(
        "linear growth, restarted at every drop of the learning rate",
        ("p1", "t_end", "cycles"),
        lambda s, x: x,
        phases="lr_drops",
    ),
    "cosine": Kind("half a cosine", ("p1", "t_end"), lambda s, x: (1 - math.cos(math.pi * x)) / 2),
    "step": Kind("equal stairs", ("p1", "t_end", "steps"), _stairs),
    "sigmoid": Kind("slow, fast, slow", ("p1", "t_end", "steepness"), _sigmoid),
    "cyclic": Kind(
        "a cosine wave from p0 to p1 and back in each cycle",
        ("p1", "cycles"),
        lambda s, x: (1 - math.cos(2 * math.pi * x)) / 2,
        phases="cycles",
    ),
}
PAPER_KINDS = ("uniform", "linear", "review")  # those of the IAKD paper


def settings_used(kind: str, lr_drops: bool) -> tuple[str, ...]:
    """The settings that p(t) of a kind depends on, in the order in which a study draws them.

    `lr_drops`: whether the learning rate drops at milestones, so that `review` needs no cycles.
    """
    unused = {"cycles"} if KINDS[kind].phases == "lr_drops" and lr_drops else set()
    return ("p0", "slope", "student_only", *(name for name in KINDS[kind].settings if name not in unused))
