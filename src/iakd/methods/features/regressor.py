"""From the student's maps to the teacher's, as in RepDistiller's ConvReg."""

from torch import Tensor, nn

from iakd.models.shapes import Shape


class Regressor(nn.Module):
    """Convolution, normalisation and, if `active`, ReLU: maps of shape `ours` (C, H, W) become such of `theirs`.

    Sizes that are neither equal nor one twice the other stay as they are; the larger map is to be pooled then.
    """

    def __init__(self, ours: Shape, theirs: Shape, active: bool) -> None:
        super().__init__()
        self.convolution = _convolution(ours, theirs)
        self.norm = nn.BatchNorm2d(theirs[0])
        self.activation = nn.ReLU() if active else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.activation(self.norm(self.convolution(maps)))


def _convolution(ours: Shape, theirs: Shape) -> nn.Module:
    """Without bias: the normalisation has one."""
    channels = ours[0], theirs[0]
    if ours[1:] == (2 * theirs[1], 2 * theirs[2]):
        return nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)
    if theirs[1:] == (2 * ours[1], 2 * ours[2]):
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
    return nn.Conv2d(*channels, 1, bias=False)
