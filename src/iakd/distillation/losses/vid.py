"""Variational information distillation: the mutual information between the feature maps should be large."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import VidOptions
from iakd.distillation.loss import LossContext
from iakd.distillation.losses.maps import LevelLoss, level_shapes, match_sizes

INITIAL_VARIANCE = 5.0  # of each channel
MIN_VARIANCE = 1e-5


class VIDLoss(LevelLoss):
    """CE + weight·Σ_l −log q(teacher's maps | student's maps), q a normal distribution, up to a constant.

    Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019; weight and
    predictor as in RepDistiller. The predictors are trained with the student.
    """

    def __init__(self, context: LossContext) -> None:
        options: VidOptions = context.options
        super().__init__(context, "vid", options.weight)
        self.predictors = nn.ModuleList(Predictor(student[0], teacher[0]) for student, teacher in level_shapes(context))

    def level_loss(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        return self.predictors[level](*match_sizes(student, teacher))


class Predictor(nn.Module):
    """A normal distribution of the teacher's maps (B, C', H, W) given the student's (B, C, H, W).

    Three 1×1 convolutions predict its mean; its variance is one parameter per channel of the teacher.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        raw = math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE))  # softplus⁻¹
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), raw))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the negative log-likelihood up to a constant, mean over images, channels and positions."""
        variance = (F.softplus(self.raw_variance) + MIN_VARIANCE).view(-1, 1, 1)
        return gaussian_loss(self.mean(student), variance, teacher)


def gaussian_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of ((teacher − mean)²/variance + log variance)/2 for maps (B, C, H, W), variances (C, 1, 1)."""
    return ((mean - teacher).square() / variance + variance.log()).mean() / 2
