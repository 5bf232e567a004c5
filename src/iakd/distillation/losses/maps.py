"""What losses between feature maps share: maps of equal size, regressors, norms, and a base class for all levels.

Where sizes differ, the larger map is pooled to the smaller, as in RepDistiller. Tokens become a column of pixels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext, features_at_levels, level_features
from iakd.errors import UnsuitableSettings
from iakd.models.shapes import Shape

TINY = 1e-24  # a squared length below this counts as zero


class LevelLoss(DistillationLoss):
    """Base class of losses that add weight·Σ_l loss(student's maps, teacher's maps) over the levels l.

    The levels are usually the ends of the stages (`models.pairing.levels`), or hint points. The term is named after the
    method, `name`.
    """

    uses_hidden_features = True
    graph_safe = True

    def __init__(self, context: LossContext, name: str, weight: float) -> None:
        super().__init__(context)
        self.context = context
        self.name = name
        self.weight = weight
        self.student_features, self.teacher_features = features_at_levels(context)

    def level_loss(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, between the maps (B, C, H, W) and (B, C', H', W') at one level."""
        raise NotImplementedError

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        maps = level_maps(self.context, outputs)
        losses = [self.level_loss(level, student, teacher) for level, (student, teacher) in enumerate(maps)]
        return {self.name: self.weight * sum(losses[1:], losses[0])}


# --- maps ---


def as_maps(features: Tensor) -> Tensor:
    """Return float32 maps (B, C, H, W); tokens (B, N, C) become (B, C, N, 1)."""
    features = features.float()
    return features if features.dim() == 4 else features.transpose(1, 2).unsqueeze(3)


def map_shape(shape: Shape) -> Shape:
    """Return the shape (C, H, W) that `as_maps` turns one image's features of shape `shape` into."""
    return shape if len(shape) == 3 else (shape[1], shape[0], 1)


def level_maps(context: LossContext, outputs: ForwardOutputs) -> list[tuple[Tensor, Tensor]]:
    """Return the student's and the teacher's maps (B, C, H, W) at each level."""
    return [(as_maps(student), as_maps(teacher)) for student, teacher in level_features(context, outputs)]


def level_shapes(context: LossContext) -> list[tuple[Shape, Shape]]:
    """Return the shapes (C, H, W) of the student's and the teacher's maps at each level."""
    return [(map_shape(pair.student.after), map_shape(pair.teacher.after)) for pair in context.levels]


def require_maps(context: LossContext, name: str) -> None:
    """Raise UnsuitableSettings if the networks' blocks return tokens, which method `name` cannot compare."""
    if len(context.levels[0].student.after) == 2:
        raise UnsuitableSettings(
            f"{name} compares feature maps, but the blocks of these networks return tokens; "
            "choose convolutional networks, or another method, such as kd, rkd or sp"
        )


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool maps (B, C, H, W) and (B, C', H', W') to the smaller height and the smaller width of the two."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return pool_to(student, size), pool_to(teacher, size)


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps over windows, (B, C, H, W) → (B, C, *size), with the values of F.adaptive_avg_pool2d.

    Unlike that function, it has a deterministic gradient on a GPU.
    """
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return _windows(height, size[0], maps.device) @ maps @ _windows(width, size[1], maps.device).T


@lru_cache(maxsize=64)
def _windows(before: int, after: int, device: torch.device) -> Tensor:
    """Return a matrix (after, before) whose row i averages the inputs from ⌊i·before/after⌋ to ⌈(i+1)·before/after⌉."""
    matrix = torch.zeros(after, before)
    for i in range(after):
        start, end = i * before // after, -(-(i + 1) * before // after)
        matrix[i, start:end] = 1 / (end - start)
    return matrix.to(device)


# --- layers ---


class Regressor(nn.Module):
    """Predicts the teacher's maps from the student's: convolution, batch normalisation and, if `active`, ReLU.

    Shapes are (C, H, W). If one size is twice the other, the convolution has stride 2 or is transposed; otherwise the
    student's size is kept, and the larger map has to be pooled for the comparison. As `ConvReg` in RepDistiller.
    """

    def __init__(self, student: Shape, teacher: Shape, active: bool) -> None:
        super().__init__()
        self.convolution = _convolution(student, teacher)
        self.norm = nn.BatchNorm2d(teacher[0])
        self.activation = nn.ReLU() if active else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return self.activation(self.norm(self.convolution(maps)))


def convolution_and_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a bridge of FCFD without its activation: 3×3 convolution and BatchNorm, (B, C, H, W) → (B, C', H, W)."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def _convolution(student: Shape, teacher: Shape) -> nn.Module:
    """Return a convolution without bias, as the normalisation after it has one."""
    channels = student[0], teacher[0]
    if student[1:] == (2 * teacher[1], 2 * teacher[2]):
        return nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)
    if teacher[1:] == (2 * student[1], 2 * student[2]):
        return nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
    return nn.Conv2d(*channels, 1, bias=False)


# --- norms ---


def length(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return Euclidean lengths along `dim`, which is removed; the gradient at a zero vector is zero."""
    squares = vectors.square().sum(dim)
    return torch.where(squares > TINY, squares.clamp(min=TINY).sqrt(), 0.0)


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors along `dim` to length 1; a zero vector stays zero, and its gradient is zero."""
    squares = vectors.square().sum(dim, keepdim=True)
    return torch.where(squares > TINY, vectors * squares.clamp(min=TINY).rsqrt(), 0.0)
