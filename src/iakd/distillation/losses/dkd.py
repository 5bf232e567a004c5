"""Decoupled knowledge distillation: separate weights for the target class and the other classes."""

from collections.abc import Hashable

import torch
from torch import Tensor

from iakd.config.method_options import DkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class DKDLoss(DistillationLoss):
    """ce_weight·CE + min(epoch/warmup_epochs, 1)·(alpha·TCKD + beta·NCKD), epochs counted from 1.

    Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, equation 7; weights and warm-up as in mdistiller.
    """

    teacher_features = LOGITS

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: DkdOptions = context.options
        self.ce_weight = self.options.ce_weight
        self.timeline = context.timeline

    def graph_key(self, step: int) -> Hashable:
        return self._warmup(step)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        target, others = decoupled(outputs.student_logits, outputs.teacher_logits, outputs.batch.labels, o.temperature)
        warmup = self._warmup(outputs.step)
        return {"dkd_target": warmup * o.alpha * target, "dkd_others": warmup * o.beta * others}

    def _warmup(self, step: int) -> float:
        return self.timeline.warmup(step, self.options.warmup_epochs)


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD of logits (B, classes) with labels (B,): each T²·KL(teacher ‖ student), batch mean.

    TCKD compares the probability of the target class with that of all other classes together, NCKD the probabilities
    among the other classes (equation 7).
    """
    (student_target, student_others), (teacher_target, teacher_others) = (
        _split(logits.float() / temperature, labels) for logits in (student, teacher)
    )
    return (
        temperature**2 * kd_divergence(student_target, teacher_target, 1.0),
        temperature**2 * kd_divergence(student_others, teacher_others, 1.0),
    )


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of target and non-target (B, 2), and those of the other classes (B, classes − 1)."""
    classes = logits.shape[1]
    shifts = torch.arange(1, classes, device=labels.device)
    others = logits.gather(1, (labels[:, None] + shifts) % classes)
    return torch.cat((logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)), dim=1), others
