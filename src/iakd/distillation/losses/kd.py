"""Knowledge distillation: the teacher's softened outputs as targets."""

import torch.nn.functional as F
from torch import Tensor

from iakd.config.method_options import KdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import LOGITS


class KDLoss(DistillationLoss):
    """ce_weight·CE + kd_weight·T²·KL(softmax(teacher/T) ‖ softmax(student/T)).

    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015; weights as in RepDistiller.
    """

    teacher_features = LOGITS
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: KdOptions = context.options
        self.ce_weight = self.options.ce_weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        divergence = kd_divergence(outputs.student_logits, outputs.teacher_logits, self.options.temperature)
        return {"kd": self.options.kd_weight * divergence}


def kd_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)) of logits (B, classes), mean over the batch.

    Hinton et al. 2015, section 2.
    """
    student_log_p = F.log_softmax(student.float() / temperature, dim=1)
    teacher_log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student_log_p, teacher_log_p, log_target=True, reduction="batchmean")
