"""The ways to train a student."""

from typing import Any, Literal

from pydantic import Field, model_validator

from iakd.params.base import Fraction, Strict, did_you_mean


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


class Kd(Strict):
    """Hinton's distillation, ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class LabelSmoothing(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = 0.1


class Iakd(Strict):
    """Interactive distillation: student blocks swapped at random for the teacher's."""

    schedule: Schedule | Literal["tuned"] = Field(Schedule(), description="'tuned': what `iakd tune` found")
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


METHODS: dict[str, type[Strict] | None] = {  # a part of a method expression and the section with its options
    "scratch": None,
    "label_smoothing": LabelSmoothing,
    "kd": Kd,
    "iakd": Iakd,
}


class Method(Strict):
    """One way to train the student."""

    method: str = Field(description="scratch, label_smoothing, kd, iakd, or a sum such as iakd+kd; default: the label")
    init: Literal["random", "teacher"] = Field(
        "random", description="teacher: copy stem, head and first block of each group"
    )
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe")
    kd: Kd = Kd()
    label_smoothing: LabelSmoothing = LabelSmoothing()
    iakd: Iakd = Iakd()

    @property
    def parts(self) -> list[str]:
        """The names that the expression adds up."""
        return self.method.split("+")

    @property
    def tuned(self) -> bool:
        """Whether the schedule comes from a study."""
        return "iakd" in self.parts and self.iakd.schedule == "tuned"

    @property
    def needs_teacher(self) -> bool:
        """Whether training looks at the teacher at all."""
        return self.init == "teacher" or bool({"kd", "iakd"} & set(self.parts))

    @model_validator(mode="after")
    def _known_parts(self) -> "Method":
        for part in self.parts:
            if part not in METHODS:
                raise ValueError(f"unknown method {part!r}{did_you_mean(part, METHODS)}; known: {', '.join(METHODS)}")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"{self.method!r} names a part twice")
        if "scratch" in self.parts and len(self.parts) > 1:
            raise ValueError(f"{self.method!r}: scratch is no loss that could be added")
        for name in self.model_fields_set & set(METHODS):
            if name not in self.parts:
                raise ValueError(f"has options for {name!r}, which {self.method!r} does not use")
        return self

    def settings(self) -> dict[str, Any]:
        """What the training depends on: the options of the parts in use."""
        used = {"method", "init"} | (set(self.parts) & set(type(self).model_fields))
        return self.model_dump(mode="json", include=used)
