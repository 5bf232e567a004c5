"""Probabilistic knowledge transfer (Passalis and Tefas 2018), weight and kernel as in RepDistiller."""

from torch import Tensor

from iakd.methods.geometry import unit
from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import POOLED

EPSILON = 1e-7  # keeps the logarithm finite


class Pkt(Part):
    """weight·transfer_loss of pooled features."""

    student_needs = POOLED
    teacher_needs = POOLED
    across_images = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.weight = setting.method.pkt.weight

    def terms(self, step: Step) -> dict[str, Tensor]:
        assert step.student.pooled is not None and step.teacher.pooled is not None
        return {"pkt": self.weight * transfer_loss(step.student.pooled, step.teacher.pooled)}


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
