"""Correlation congruence: differences from the teacher, uncorrelated between neighbouring images of a batch."""

from torch import Tensor, nn

from iakd.config.method_options import CcOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.models.features import POOLED


class CCLoss(DistillationLoss):
    """CE + weight·mean over neighbouring images i, i + 1 of δ_i·δ_(i+1), δ = |e_s − e_t|.

    e_s and e_t are the pooled features of student and teacher, each embedded by a linear layer that is trained with the
    student. Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019; form and weight as in
    RepDistiller, which has them from the authors.
    """

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: CcOptions = context.options
        self.student, self.teacher = (nn.Linear(size, self.options.dim) for size in context.pooled_sizes)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        embedded = self.student(outputs.student.pooled.float()), self.teacher(outputs.teacher.pooled.float())
        return {"cc": self.options.weight * congruence_loss(*embedded)}


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over images i of δ_i·δ_(i+1), δ = |student − teacher| (B, D); 0 for a single image."""
    delta = (student - teacher).float().abs()
    return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)
