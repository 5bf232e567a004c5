"""Distillation of softened outputs (Hinton et al. 2015), weights as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import LOGITS


class KDLoss(DistillationLoss):
    """kd_weight·T²·KL(teacher_T ‖ student_T) beside ce_weight·CE."""

    teacher_features = LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        divergence = kd_divergence(outputs.student_logits, outputs.teacher_logits, self.options.temperature)
        return {"kd": self.options.kd_weight * divergence}


def kd_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch (Hinton et al. 2015, section 2)."""
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
