"""Features of two networks as maps of one size.

Where sizes differ, the larger map is pooled to the smaller, as RepDistiller does it. Tokens are a column of pixels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import ForwardOutputs, LossContext, level_features
from iakd.errors import UserError
from iakd.models.shapes import Shape


def as_maps(features: Tensor) -> Tensor:
    """Float32 maps (B, C, H, W); tokens (B, N, C) become (B, C, N, 1)."""
    features = features.float()
    return features if features.dim() == 4 else features.transpose(1, 2).unsqueeze(3)


def map_shape(shape: Shape) -> Shape:
    """(C, H, W) of what `as_maps` makes of one image's features of this shape."""
    return shape if len(shape) == 3 else (shape[1], shape[0], 1)


def level_maps(context: LossContext, outputs: ForwardOutputs) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's maps at each level."""
    return [(as_maps(ours), as_maps(theirs)) for ours, theirs in level_features(context, outputs)]


def level_shapes(context: LossContext) -> list[tuple[Shape, Shape]]:
    """Their shapes (C, H, W)."""
    return [(map_shape(pair.student.after), map_shape(pair.teacher.after)) for pair in context.levels]


def refuse_tokens(context: LossContext, name: str) -> None:
    """Raise UserError where the networks' blocks give tokens and the method `name` needs maps."""
    if len(context.levels[0].student.after) == 2:
        raise UserError(
            f"{name} looks at maps, but these networks' blocks give tokens; choose convolutional networks, "
            "or a method that does without, such as kd, rkd or sp"
        )


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, C, H, W) at the smaller height and the smaller width of the two."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return pooled(student, size), pooled(teacher, size)


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over windows, (B, C, H, W) → (B, C, *size), what F.adaptive_avg_pool2d gives.

    That one has no deterministic gradient on a GPU.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return _windows(height, size[0], maps.device) @ maps @ _windows(width, size[1], maps.device).T


@lru_cache(maxsize=64)
def _windows(before: int, after: int, device: torch.device) -> Tensor:
    """(after, before): row i averages the inputs from ⌊i·before/after⌋ up to ⌈(i+1)·before/after⌉."""
    matrix = torch.zeros(after, before)
    for i in range(after):
        start, end = i * before // after, -(-(i + 1) * before // after)
        matrix[i, start:end] = 1 / (end - start)
    return matrix.to(device)


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


TINY = 1e-24  # a squared length below this counts as zero


def length(vectors: Tensor, dim: int = -1) -> Tensor:
    """Euclidean lengths along `dim`, which is left out; the gradient at a zero vector is zero."""
    squares = vectors.square().sum(dim)
    return torch.where(squares > TINY, squares.clamp(min=TINY).sqrt(), 0.0)


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors along `dim` made one long; a zero vector stays zero, and its gradient is zero."""
    squares = vectors.square().sum(dim, keepdim=True)
    return torch.where(squares > TINY, vectors * squares.clamp(min=TINY).rsqrt(), 0.0)
