"""Attention transfer: the student's features should be strong at the same positions as the teacher's."""

from torch import Tensor

from iakd.config.method_options import AtOptions
from iakd.distillation.loss import LossContext
from iakd.distillation.losses.maps import LevelLoss, match_sizes, unit


class ATLoss(LevelLoss):
    """CE + weight·Σ_l mean (a_s − a_t)², a the attention map of level l as a vector of length 1.

    Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, section 3.1; weight as in RepDistiller.
    """

    def __init__(self, context: LossContext) -> None:
        options: AtOptions = context.options
        super().__init__(context, "at", options.weight)

    def level_loss(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_loss(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the attention of maps (B, C, H, W) and (B, C', H', W')."""
    student, teacher = match_sizes(student, teacher)
    return (attention(student) - attention(teacher)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """Average the squares over the channels and scale the result to length 1: (B, C, H, W) → (B, H·W)."""
    return unit(maps.float().square().mean(1).flatten(1))
