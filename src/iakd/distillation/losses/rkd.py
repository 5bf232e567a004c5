"""Relational knowledge distillation: distances and angles between the images of a batch."""

import torch.nn.functional as F
from torch import Tensor

from iakd.config.method_options import RkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import length, unit
from iakd.models.features import POOLED


class RKDLoss(DistillationLoss):
    """CE + distance_weight·L(distances) + angle_weight·L(angles) of pooled features, L smooth L1.

    Park et al., Relational Knowledge Distillation, CVPR 2019; weights as in RepDistiller.
    """

    student_features = POOLED
    teacher_features = POOLED
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: RkdOptions = context.options

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        student, teacher = differences(outputs.student.pooled), differences(outputs.teacher.pooled)
        return {
            "rkd_distance": self.options.distance_weight * distance_loss(student, teacher),
            "rkd_angle": self.options.angle_weight * angle_loss(student, teacher),
        }


def differences(features: Tensor) -> Tensor:
    """Return x_j − x_i at [i, j], float32 (B, B, D), for features x (B, D)."""
    features = features.float()
    return features[None] - features[:, None]


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return smooth L1 between the distances of all pairs, relative to their mean, from `differences` (B, B, D)."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return smooth L1 between the cosines of the angles j–i–k of all triples, from `differences` (B, B, D)."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(vectors: Tensor) -> Tensor:
    """Return distances divided by their mean over all pairs of two images, (B, B).

    Images with equal features count, as in the paper's mean distance and in the authors' code.
    """
    distances = length(vectors)
    images = len(distances)
    total = distances.sum()
    return distances * max(1, images * (images - 1)) / total.where(total > 0, 1.0)


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosine of the angle at image i between j and k at [i, j, k], (B, B, B)."""
    directions = unit(vectors)
    return directions @ directions.transpose(1, 2)
