"""Correlation congruence (Peng et al. 2019), in the form and with the weight that RepDistiller has from its authors."""

from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import POOLED


class CCLoss(DistillationLoss):
    """weight·congruence_loss of pooled features, both networks' embedded by a linear layer each, which learns along."""

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        options = context.options
        self.weight = options.weight
        self.student, self.teacher = (nn.Linear(size, options.dim) for size in context.pooled_sizes)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        embedded = self.student(outputs.student.pooled.float()), self.teacher(outputs.teacher.pooled.float())
        return {"cc": self.weight * congruence_loss(*embedded)}


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images i of δ_i · δ_(i+1), with δ = |student − teacher|, (B, D); 0 for a single image."""
    delta = (student - teacher).float().abs()
    return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)
