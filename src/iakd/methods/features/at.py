"""Attention transfer (Zagoruyko and Komodakis 2017), weight as in RepDistiller."""

from torch import Tensor

from iakd.methods.features.maps import level_maps, of_one_size
from iakd.methods.geometry import unit
from iakd.methods.part import Part, Setting, Step, at_levels


class At(Part):
    """weight·Σ attention_loss over the levels."""

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.setting = setting
        self.weight = setting.method.at.weight
        self.student_needs, self.teacher_needs = at_levels(setting)

    def terms(self, step: Step) -> dict[str, Tensor]:
        losses = [attention_loss(*maps) for maps in level_maps(self.setting, step)]
        return {"at": self.weight * sum(losses[1:], losses[0])}


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention of maps (B, C, H, W), whatever their channels."""
    ours, theirs = of_one_size(student, teacher)
    return (attention(ours) - attention(theirs)).square().mean()


def attention(maps: Tensor) -> Tensor:
    """Mean of squares over channels at each place, made a vector of length 1: (B, C, H, W) → (B, H·W)."""
    return unit(maps.float().square().mean(1).flatten(1))
