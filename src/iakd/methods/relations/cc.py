"""Correlation congruence (Peng et al. 2019), in the form and with the weight that RepDistiller has from its authors."""

from torch import Tensor, nn

from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import POOLED


class Cc(Part):
    """weight·congruence_loss of pooled features, both networks' embedded by a linear layer each, which learns along."""

    student_needs = POOLED
    teacher_needs = POOLED
    across_images = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        options = setting.method.cc
        self.weight = options.weight
        self.student, self.teacher = (nn.Linear(size, options.dim) for size in setting.pooled_sizes)

    def terms(self, step: Step) -> dict[str, Tensor]:
        assert step.student.pooled is not None and step.teacher.pooled is not None
        embedded = self.student(step.student.pooled.float()), self.teacher(step.teacher.pooled.float())
        return {"cc": self.weight * congruence_loss(*embedded)}


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images i of δ_i · δ_(i+1), with δ = |student − teacher|, (B, D); 0 for a single image."""
    delta = (student - teacher).float().abs()
    return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)
