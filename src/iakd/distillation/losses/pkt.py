"""Probabilistic knowledge transfer (Passalis and Tefas 2018), weight and kernel as in RepDistiller."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import unit
from iakd.models.features import POOLED

EPSILON = 1e-7  # keeps the logarithm finite


class PKTLoss(DistillationLoss):
    """weight·transfer_loss of pooled features."""

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.weight = context.options.weight

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        return {"pkt": self.weight * transfer_loss(outputs.student.pooled, outputs.teacher.pooled)}


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pairs of p_t·log(p_t/p_s), of features (B, D).

    p(j|i) is (1 + cosine)/2 of images i and j, divided by its sum over j.
    """
    ours, theirs = _neighbours(student), _neighbours(teacher)
    return (theirs * ((theirs + EPSILON) / (ours + EPSILON)).log()).mean()


def _neighbours(features: Tensor) -> Tensor:
    directions = unit(features.float())
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
