"""Relational knowledge distillation (Park et al. 2019), weights as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import length, unit
from iakd.models.features import POOLED


class RKDLoss(DistillationLoss):
    """distance_weight·distance_loss + angle_weight·angle_loss of pooled features."""

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        student, teacher = differences(outputs.student.pooled), differences(outputs.teacher.pooled)
        return {
            "rkd_distance": self.options.distance_weight * distance_loss(student, teacher),
            "rkd_angle": self.options.angle_weight * angle_loss(student, teacher),
        }


def differences(features: Tensor) -> Tensor:
    """x_j − x_i at [i, j], float32 (B, B, D), of features (B, D)."""
    features = features.float()
    return features[None] - features[:, None]


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the distances in units of their mean, of `differences`."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles j–i–k of all triples, of `differences`."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(between: Tensor) -> Tensor:
    distances = length(between)
    apart = (distances > 0).sum().clamp(min=1)
    total = distances.sum()
    return distances * apart / total.where(total > 0, 1.0)


def _cosines(between: Tensor) -> Tensor:
    directions = unit(between)
    return directions @ directions.transpose(1, 2)
