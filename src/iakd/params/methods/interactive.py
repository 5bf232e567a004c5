"""Interactive distillation: schedules of the swaps, and what is swapped."""

from typing import Literal

from pydantic import Field

from iakd.params.base import Fraction, Strict
from iakd.params.methods.entry import Entry


class Schedule(Strict):
    """p(t), the probability that a student block is KEPT, over the progress t ∈ [0, 1] of the training."""

    kind: Literal["uniform", "linear", "review", "cosine", "step", "sigmoid", "cyclic"] = "linear"
    p0: Fraction = Field(0.5, description="at the start")
    p1: Fraction = Field(1.0, description="at t_end (all but uniform)")
    t_end: float = Field(0.8, gt=0, le=1, description="progress at which p1 is reached (review: of each phase)")
    slope: float = Field(0.0, ge=-2, le=2, description="tilt over depth: the last block's p minus the first's")
    solo: Fraction = Field(0.2, description="last part of the training, at p = 1")
    cycles: int = Field(3, gt=0, description="cyclic; review where the learning rate has no drops")
    steps: int = Field(4, gt=0, description="step: number of equal stairs from p0 to p1")
    steepness: float = Field(10.0, gt=0, description="sigmoid: slope in the middle; 10 is nearly flat at both ends")


class Iakd(Strict):
    """Interactive distillation: student blocks swapped at random for the teacher's."""

    schedule: Schedule | Literal["tuned"] = Field(Schedule(), description="'tuned': what `iakd tune` found")
    granularity: Literal["batch", "sample", "channel"] = Field(
        "batch",
        description="what is drawn anew for each block: once for the whole batch; once for each image; "
        "once for each channel, which is then the student's, the teacher's or the mean of both",
    )
    unit: Literal["block", "stage"] = Field("block", description="what is swapped as one")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval", description="statistics in swapped blocks: running or the batch's"
    )
    stem: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    head: Literal["student", "teacher"] = Field("student", description="teacher: copied and frozen")
    at_least_one_student: bool | None = Field(
        None, description="never swap every block at once; default: only where stem and head are frozen"
    )
    bn_reestimate: bool = Field(False, description="gather the student's BatchNorm statistics anew at the end")
    path: Literal["hybrid", "student"] = Field("hybrid", description="iakd+X: whose output the added loss X sees")


class InteractiveOptions(Strict):
    """Sections of the methods in this module."""

    iakd: Iakd = Iakd()


METHODS = {
    "iakd": Entry("student blocks swapped at random for the teacher's while it trains", "interactive", Iakd),
}
