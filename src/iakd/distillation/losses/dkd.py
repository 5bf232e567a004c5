"""Decoupled distillation (Zhao et al., Decoupled Knowledge Distillation, CVPR 2022), weights as in mdistiller."""

import torch
from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS


class DKDLoss(DistillationLoss):
    """warm-up·(alpha·TCKD + beta·NCKD) beside ce_weight·CE."""

    teacher_features = LOGITS

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight
        self.timeline = context.timeline

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        o = self.options
        target, others = decoupled(outputs.student_logits, outputs.teacher_logits, outputs.batch.labels, o.temperature)
        epoch = self.timeline.place(outputs.step)[0] + 1  # its authors count from 1
        warmup = min(epoch / o.warmup_epochs, 1.0) if o.warmup_epochs else 1.0
        return {"dkd_target": warmup * o.alpha * target, "dkd_others": warmup * o.beta * others}


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each T²·KL(teacher ‖ student), mean over the batch (equation 7).

    TCKD compares the probability of the target class with that of all others together, NCKD the probabilities among
    the others. Logits (B, classes), labels (B,).
    """
    (our_pair, our_others), (their_pair, their_others) = (
        _split(logits.float() / temperature, labels) for logits in (student, teacher)
    )
    return (
        temperature**2 * kd_divergence(our_pair, their_pair, 1.0),
        temperature**2 * kd_divergence(our_others, their_others, 1.0),
    )


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the two cases target and not target (B, 2), and those of the other classes (B, classes − 1)."""
    classes = logits.shape[1]
    shifts = torch.arange(1, classes, device=labels.device)
    others = logits.gather(1, (labels[:, None] + shifts) % classes)
    return torch.cat((logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)), dim=1), others
