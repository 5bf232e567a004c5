"""Relational knowledge distillation (Park et al. 2019), weights as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.methods.geometry import length, unit
from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import POOLED


class Rkd(Part):
    """distance_weight·distance_loss + angle_weight·angle_loss of pooled features."""

    student_needs = POOLED
    teacher_needs = POOLED
    across_images = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.options = setting.method.rkd

    def terms(self, step: Step) -> dict[str, Tensor]:
        assert step.student.pooled is not None and step.teacher.pooled is not None
        student, teacher = differences(step.student.pooled), differences(step.teacher.pooled)
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
