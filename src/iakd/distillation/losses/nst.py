"""Neuron selectivity transfer: the student's channels should be distributed like the teacher's."""

from torch import Tensor

from iakd.config.method_options import NstOptions
from iakd.distillation.loss import LossContext
from iakd.distillation.losses.maps import LevelLoss, match_sizes, unit


class NSTLoss(LevelLoss):
    """CE + weight·Σ_l mean MMD², the squared maximum mean discrepancy between the channels at level l.

    Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, with the polynomial
    kernel (x·y)²; weight as in RepDistiller.
    """

    def __init__(self, context: LossContext) -> None:
        options: NstOptions = context.options
        super().__init__(context, "nst", options.weight)

    def level_loss(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        return selectivity_loss(student, teacher)


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared MMD between the channels of maps (B, C, H, W) and (B, C', H', W'), mean over the images.

    A channel is represented by its map, flattened and scaled to length 1.
    """
    student, teacher = (unit(maps.float().flatten(2)) for maps in match_sizes(student, teacher))
    return _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (a_i·b_j)² over the images and all pairs of channels, (B, C, N) and (B, C', N)."""
    return (a @ b.transpose(1, 2)).square().mean()
