"""Methods that look at outputs alone."""

from pydantic import Field

from iakd.params.base import Fraction, Strict
from iakd.params.methods.entry import Entry


class Kd(Strict):
    """Hinton's distillation, ce_weight·CE + kd_weight·T²·KL(teacher_T ‖ student_T)."""

    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.1, ge=0)
    kd_weight: float = Field(0.9, ge=0)


class LabelSmoothing(Strict):
    """Cross-entropy with smoothed labels."""

    epsilon: Fraction = 0.1


class LogitOptions(Strict):
    """Sections of the methods in this module."""

    label_smoothing: LabelSmoothing = LabelSmoothing()
    kd: Kd = Kd()


METHODS = {
    "scratch": Entry("cross-entropy alone", "reference", needs_teacher=False, alone="it adds no loss"),
    "label_smoothing": Entry("cross-entropy with smoothed labels", "reference", LabelSmoothing, needs_teacher=False),
    "kd": Entry("the teacher's softened outputs as targets (Hinton et al. 2015)", "logits", Kd),
}
