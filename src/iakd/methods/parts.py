"""The parts that a method expression such as `iakd+kd` adds up.

A part weighs the cross-entropy and may add a term. In a sum the cross-entropy counts once, with the largest weight
and the largest smoothing among the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from iakd import params
from iakd.data.batches import Batch
from iakd.methods.losses import kd_divergence


class Views:
    """What the terms of one step may look at; each forward pass is made once, and only if asked for."""

    def __init__(self, batch: Batch, student: nn.Module, teacher: nn.Module | None) -> None:
        self.batch = batch
        self._student = student
        self._teacher = teacher

    @cached_property
    def student_logits(self) -> Tensor:
        """(B, classes), of the student alone."""
        return self._student(self.batch.images)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """(B, classes), of the frozen teacher."""
        assert self._teacher is not None, "a part that looks at the teacher says so in params.Method.needs_teacher"
        with torch.no_grad():
            return self._teacher(self.batch.images)


Term = Callable[[Views, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Weight and label smoothing of the cross-entropy, and named terms of (views, logits to be taught)."""

    ce_weight: float = 1.0
    smoothing: float = 0.0
    terms: tuple[tuple[str, Term], ...] = ()


def scratch(method: params.Method) -> Part:
    """Cross-entropy."""
    return Part()


def label_smoothing(method: params.Method) -> Part:
    """Cross-entropy with smoothed labels (Szegedy et al. 2016, section 7)."""
    return Part(smoothing=method.label_smoothing.epsilon)


def kd(method: params.Method) -> Part:
    """Distillation of softened outputs (Hinton et al. 2015), weights as in RepDistiller."""
    options = method.kd

    def term(views: Views, logits: Tensor) -> Tensor:
        return options.kd_weight * kd_divergence(logits, views.teacher_logits, options.temperature)

    return Part(ce_weight=options.ce_weight, terms=(("kd", term),))


def iakd(method: params.Method) -> Part:
    """Cross-entropy of the hybrid network, which `Distillation` computes."""
    return Part()


PARTS: dict[str, Callable[[params.Method], Part]] = {
    "scratch": scratch,
    "label_smoothing": label_smoothing,
    "kd": kd,
    "iakd": iakd,
}
