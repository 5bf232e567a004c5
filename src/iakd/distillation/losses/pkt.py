"""Probabilistic knowledge transfer: similarities between the images of a batch, as probability distributions."""

from torch import Tensor

from iakd.config.method_options import PktOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import unit
from iakd.models.features import POOLED

EPSILON = 1e-7  # keeps the logarithm finite


class PKTLoss(DistillationLoss):
    """CE + weight·mean over pairs (i, j) of p_t(j|i)·log(p_t(j|i)/p_s(j|i)), from pooled features.

    p(j|i) is (1 + cosine of images i and j)/2, divided by its sum over j.
    Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018; weight and
    kernel as in RepDistiller.
    """

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: PktOptions = context.options

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        return {"pkt": self.options.weight * transfer_loss(outputs.student.pooled, outputs.teacher.pooled)}


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over all pairs of images of p_t·log(p_t/p_s), for features (B, D) and (B, D')."""
    p_s, p_t = _similarities(student), _similarities(teacher)
    return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def _similarities(features: Tensor) -> Tensor:
    """Return p(j|i) at [i, j], (B, B)."""
    directions = unit(features.float())
    similarity = (directions @ directions.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
