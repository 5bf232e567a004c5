"""Attention transfer (Zagoruyko and Komodakis 2017), weight as in RepDistiller."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import level_maps, of_one_size, unit


class ATLoss(DistillationLoss):
    """weight·Σ attention_loss over the levels."""

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.context = context
        self.weight = context.options.weight
        self.student_features, self.teacher_features = features_at_levels(context)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        losses = [attention_loss(*maps) for maps in level_maps(self.context, outputs)]
        return {"at": self.weight * sum(losses[1:], losses[0])}


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of maps (B, C, H, W), whatever their channels."""
    ours, theirs = of_one_size(student, teacher)
    return (attention(ours) - attention(theirs)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """Mean of squares over channels at each place, made a vector of length 1: (B, C, H, W) → (B, H·W)."""
    return unit(maps.float().square().mean(1).flatten(1))
