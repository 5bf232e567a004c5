"""Neuron selectivity transfer (Huang and Wang 2017) with the polynomial kernel, weight as in RepDistiller."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import level_maps, of_one_size, unit


class NSTLoss(DistillationLoss):
    """weight·Σ selectivity_loss over the levels."""

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.context = context
        self.weight = context.options.weight
        self.student_features, self.teacher_features = features_at_levels(context)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        losses = [selectivity_loss(*maps) for maps in level_maps(self.context, outputs)]
        return {"nst": self.weight * sum(losses[1:], losses[0])}


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of maps (B, C, H, W), of any numbers of channels.

    A channel is its map as a vector of length 1, the kernel the square of the scalar product; mean over the images.
    """
    ours, theirs = (unit(maps.float().flatten(2)) for maps in of_one_size(student, teacher))
    return _kernel(theirs, theirs) + _kernel(ours, ours) - 2 * _kernel(ours, theirs)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over all pairs of channels, and over the images."""
    return (a @ b.transpose(1, 2)).square().mean()
