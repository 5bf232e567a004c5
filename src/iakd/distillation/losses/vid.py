"""Variational information distillation (Ahn et al. 2019), weight and predictor as in RepDistiller."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import level_maps, level_shapes, of_one_size

VARIANCE = 5.0  # of each channel at the start
LEAST = 1e-5  # variance


class VIDLoss(DistillationLoss):
    """weight·Σ negative log-likelihood of the teacher's maps given the student's, over the levels."""

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.context = context
        self.weight = context.options.weight
        self.student_features, self.teacher_features = features_at_levels(context)
        self.predictors = nn.ModuleList(Predictor(ours[0], theirs[0]) for ours, theirs in level_shapes(context))

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        levels = zip(self.predictors, level_maps(self.context, outputs), strict=True)
        losses = [predictor(*of_one_size(*maps)) for predictor, maps in levels]
        return {"vid": self.weight * sum(losses[1:], losses[0])}


class Predictor(nn.Module):
    """A normal distribution of the teacher's maps (B, theirs, H, W) given the student's (B, ours, H, W).

    Its mean is given by three 1×1 convolutions, its variance is one number for each of the teacher's channels.
    """

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(ours, theirs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(theirs, theirs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(theirs, theirs, 1, bias=False),
        )
        self.raw_variance = nn.Parameter(torch.full((theirs,), math.log(math.expm1(VARIANCE - LEAST))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Minus the log-likelihood but for a constant, mean over images, channels and places."""
        variance = (F.softplus(self.raw_variance) + LEAST).view(-1, 1, 1)
        return gaussian_loss(self.mean(student), variance, teacher)


def gaussian_loss(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ((teacher − mean)²/variance + log variance)/2 for maps (B, C, H, W) and variances (C, 1, 1)."""
    return ((mean - teacher).square() / variance + variance.log()).mean() / 2
