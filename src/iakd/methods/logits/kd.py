"""Distillation of softened outputs (Hinton et al. 2015), weights as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import LOGITS


class Kd(Part):
    """kd_weight·T²·KL(teacher_T ‖ student_T) beside ce_weight·CE."""

    teacher_needs = LOGITS
    replays = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.options = setting.method.kd
        self.ce_weight = self.options.ce_weight

    def terms(self, step: Step) -> dict[str, Tensor]:
        assert step.teacher_logits is not None
        divergence = kd_divergence(step.student_logits, step.teacher_logits, self.options.temperature)
        return {"kd": self.options.kd_weight * divergence}


def kd_divergence(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch (Hinton et al. 2015, section 2)."""
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
