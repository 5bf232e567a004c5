"""Distillation of standardised logits (Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024)."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS

EPSILON = 1e-7


class LSKDLoss(DistillationLoss):
    """kd_weight·T²·KL(teacher_T ‖ student_T) of standardised logits beside ce_weight·CE."""

    teacher_features = LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        ours, theirs = standardised(outputs.student_logits), standardised(outputs.teacher_logits)
        return {"lskd": self.options.kd_weight * kd_divergence(ours, theirs, self.options.temperature)}


class StandardizeLogits(DistillationLoss):
    """Every loss between outputs in the sum sees standardised logits."""

    ce_weight = 0.0  # the other parts decide

    def transform_logits(self, logits: Tensor) -> Tensor:
        return standardised(logits)


def standardised(logits: Tensor) -> Tensor:
    """Logits (B, classes) minus their mean, over their standard deviation, image by image (algorithm 1).

    Float32. Equal logits become 0, with a finite gradient.
    """
    centred = logits.float() - logits.float().mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(1, logits.shape[1] - 1)
    return centred / (variance + EPSILON**2).sqrt()
