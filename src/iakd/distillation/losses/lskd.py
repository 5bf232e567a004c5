"""Logit standardisation: distillation between logits that are standardised per image."""

from torch import Tensor

from iakd.config.method_options import LskdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.kd import kd_divergence
from iakd.models.features import LOGITS

EPSILON = 1e-7  # added to the standard deviation


class LSKDLoss(DistillationLoss):
    """ce_weight·CE + kd_weight·T²·KL(softmax(z(teacher)/T) ‖ softmax(z(student)/T)), z the standardisation.

    Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, algorithm 1; weights as in the authors'
    code.
    """

    teacher_features = LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: LskdOptions = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        student, teacher = standardised(outputs.student_logits), standardised(outputs.teacher_logits)
        return {"lskd": self.options.kd_weight * kd_divergence(student, teacher, self.options.temperature)}


class StandardizeLogits(DistillationLoss):
    """Standardises the logits that all other losses of a sum compare; has no term of its own (Sun et al. 2024)."""

    ce_weight = 0.0  # the other losses decide

    def transform_logits(self, logits: Tensor) -> Tensor:
        return standardised(logits)


def standardised(logits: Tensor) -> Tensor:
    """Subtract each image's mean from logits (B, classes) and divide by its standard deviation; float32.

    Sun et al. 2024, algorithm 1. Equal logits become 0, with a finite gradient.
    """
    centred = logits.float() - logits.float().mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(1, logits.shape[1] - 1)
    return centred / (variance + EPSILON**2).sqrt()
