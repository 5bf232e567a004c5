"""Knowledge review: features fused from the last level to the first."""

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import ReviewkdOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import level_shapes, pool_to, require_maps
from iakd.models.features import FeatureSpec
from iakd.models.shapes import Shape

MAX_CHANNELS = 512  # of the fused features
CONTEXTS = (4, 2, 1)  # sizes of the pooled maps that are compared besides the whole maps


class ReviewKDLoss(DistillationLoss):
    """CE + min(epoch/warmup_epochs, 1)·weight·Σ_l context_loss(fused student features, teacher preactivations).

    The last level is that of the pooled vectors, as 1×1 maps. From the last level to the first,
    a `Fusion` combines the student's features with the fused features of the next level; fusions are trained with the
    student. Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021; weights and layers as in the authors'
    code.

        level 0   level 1   pooled       student
           │         │         │
        fusion ◄─ fusion ◄─ fusion       fused features, at the teacher's size
           │         │         │
         loss      loss      loss        with the teacher's features
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        require_maps(context, "reviewkd")
        self.options: ReviewkdOptions = context.options
        self.timeline = context.timeline
        self.block_positions = [(pair.student.last, pair.teacher.last) for pair in context.levels]
        student_blocks, teacher_blocks = zip(*self.block_positions, strict=True)
        self.student_features = FeatureSpec(blocks=frozenset(student_blocks), pooled=True)
        self.teacher_features = FeatureSpec(preactivations=frozenset(teacher_blocks), pooled=True)
        student_size, teacher_size = context.pooled_sizes
        shapes: list[tuple[Shape, Shape]] = [*level_shapes(context), ((student_size, 1, 1), (teacher_size, 1, 1))]
        channels = min(MAX_CHANNELS, student_size)
        self.fusions = nn.ModuleList(
            Fusion(student, teacher, channels, last=position == len(shapes) - 1)
            for position, (student, teacher) in enumerate(shapes)
        )

    def graph_key(self, step: int) -> Hashable:
        return self._warmup(step)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        student = [outputs.student.blocks[block].float() for block, _ in self.block_positions]
        teacher = [outputs.teacher.preactivations[block].float() for _, block in self.block_positions]
        student.append(outputs.student.pooled.float()[:, :, None, None])
        teacher.append(outputs.teacher.pooled.float()[:, :, None, None])
        losses = [context_loss(*maps) for maps in zip(self.fused(student), teacher, strict=True)]
        return {"reviewkd": self._warmup(outputs.step) * self.options.weight * sum(losses[1:], losses[0])}

    def _warmup(self, step: int) -> float:
        epoch, _ = self.timeline.locate(step)
        return min(epoch / self.options.warmup_epochs, 1.0) if self.options.warmup_epochs else 1.0

    def fused(self, student: list[Tensor]) -> list[Tensor]:
        """Return the student's fused features of all levels, first to last, with the teacher's shapes."""
        results: list[Tensor] = []
        later: Tensor | None = None
        for fusion, maps in zip(reversed(self.fusions), reversed(student), strict=True):
            result, later = fusion(maps, later)
            results.insert(0, result)
        return results


class Fusion(nn.Module):
    """Attention-based fusion of a level's maps with the fused features of the next level.

    `student` and `teacher` are the shapes (C, H, W) of their maps, `channels` the number of fused features. Two learned
    attention maps in (0, 1) weight the two inputs at each position. The `last` level has one input only.
    """

    def __init__(self, student: Shape, teacher: Shape, channels: int, last: bool) -> None:
        super().__init__()
        self.size = teacher[1:]
        self.narrow = nn.Sequential(nn.Conv2d(student[0], channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.attention = None if last else nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid())
        self.widen = nn.Sequential(
            nn.Conv2d(channels, teacher[0], 3, padding=1, bias=False), nn.BatchNorm2d(teacher[0])
        )

    def forward(self, maps: Tensor, later: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return maps to compare with the teacher's, and the fused features for the previous level.

        Both have the teacher's size. `later` are the fused features of the next level, None at the last one.
        """
        fused = self.narrow(maps)
        if self.attention is not None and later is not None:
            later = F.interpolate(later, size=fused.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([fused, later], dim=1))
            fused = fused * weights[:, :1] + later * weights[:, 1:]
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, size=self.size, mode="nearest")
        return self.widen(fused), fused


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the hierarchical context loss of one level, for maps of the same shape (B, C, H, W).

    Weighted mean of the MSE of the whole maps, weight 1, and of maps pooled to 4×4, 2×2 and 1×1; sizes that are not
    smaller than the maps are skipped, and the weights of the others are 1/2, 1/4 and 1/8, in this order.
    """
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    height, width = student.shape[2:]
    for side in CONTEXTS:
        if side >= height:
            continue
        size = side, min(side, width)
        weight /= 2
        total += weight
        loss = loss + weight * F.mse_loss(pool_to(student, size), pool_to(teacher, size))
    return loss / total
