"""Knowledge review (Chen et al. 2021): fused features of later levels teach earlier ones, as in the authors' code."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import level_shapes, pooled, refuse_tokens
from iakd.models.features import FeatureSpec
from iakd.models.shapes import Shape

MOST_CHANNELS = 512  # of what is handed from level to level
CONTEXTS = (4, 2, 1)  # sizes of the pooled maps that are compared beside the whole ones


class ReviewKDLoss(DistillationLoss):
    """warm-up·weight·context_loss between the student's fused features and the teacher's preactivations.

    The levels are the ends of the stages and, last, the pooled vectors as maps of one place. From the last level to the
    first, a fusion joins the student's features with what the one after it hands on; it learns along.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        refuse_tokens(context, "reviewkd")
        self.options = context.options
        self.timeline = context.timeline
        self.places = [(pair.student.last, pair.teacher.last) for pair in context.levels]
        ours, theirs = zip(*self.places, strict=True)
        self.student_features = FeatureSpec(blocks=frozenset(ours), pooled=True)
        self.teacher_features = FeatureSpec(preactivations=frozenset(theirs), pooled=True)
        our_length, their_length = context.pooled_sizes
        shapes: list[tuple[Shape, Shape]] = [*level_shapes(context), ((our_length, 1, 1), (their_length, 1, 1))]
        handed_on = min(MOST_CHANNELS, our_length)
        self.fusions = nn.ModuleList(
            Fusion(student, teacher, handed_on, last=position == len(shapes) - 1)
            for position, (student, teacher) in enumerate(shapes)
        )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
        student = [outputs.student.blocks[ours].float() for ours, _ in self.places]
        teacher = [outputs.teacher.preactivations[theirs].float() for _, theirs in self.places]
        student.append(outputs.student.pooled.float()[:, :, None, None])
        teacher.append(outputs.teacher.pooled.float()[:, :, None, None])
        epoch, _ = self.timeline.place(outputs.step)
        warmup = min(epoch / self.options.warmup_epochs, 1.0) if self.options.warmup_epochs else 1.0
        losses = [context_loss(*maps) for maps in zip(self.fused(student), teacher, strict=True)]
        return {"reviewkd": warmup * self.options.weight * sum(losses[1:], losses[0])}

    def fused(self, student: list[Tensor]) -> list[Tensor]:
        """The student's features of all levels, first to last, made comparable to the teacher's."""
        results: list[Tensor] = []
        handed: Tensor | None = None
        for fusion, maps in zip(reversed(self.fusions), reversed(student), strict=True):
            result, handed = fusion(maps, handed)
            results.insert(0, result)
        return results


class Fusion(nn.Module):
    """Attention-based fusion: maps of shape `student` and what the later level hands on, to maps of shape `teacher`.

    Two learnt maps of weights in (0, 1) say how much of either is taken at each place. The `last` level has nothing
    after it.
    """

    def __init__(self, student: Shape, teacher: Shape, handed_on: int, last: bool) -> None:
        super().__init__()
        self.size = teacher[1:]
        self.narrow = nn.Sequential(nn.Conv2d(student[0], handed_on, 1, bias=False), nn.BatchNorm2d(handed_on))
        self.attention = None if last else nn.Sequential(nn.Conv2d(2 * handed_on, 2, 1), nn.Sigmoid())
        self.widen = nn.Sequential(
            nn.Conv2d(handed_on, teacher[0], 3, padding=1, bias=False), nn.BatchNorm2d(teacher[0])
        )

    def forward(self, maps: Tensor, handed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Maps to compare with the teacher's, and what is handed on to the level before, both of the teacher's size."""
        joined = self.narrow(maps)
        if self.attention is not None and handed is not None:
            later = F.interpolate(handed, size=joined.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([joined, later], dim=1))
            joined = joined * weights[:, :1] + later * weights[:, 1:]
        if joined.shape[2:] != self.size:
            joined = F.interpolate(joined, size=self.size, mode="nearest")
        return self.widen(joined), joined


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of one level, for maps of the same shape (B, C, H, W).

    Weighted mean of the MSE of the whole maps, weight 1, and of maps pooled to 4×4, 2×2 and 1×1, as far as these are
    smaller, weights 1/2, 1/4 and 1/8 in this order (1/2 for the first that is compared).
    """
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    height, width = student.shape[2:]
    for side in CONTEXTS:
        if side >= height:
            continue
        size = side, min(side, width)
        weight /= 2
        total += weight
        loss = loss + weight * F.mse_loss(pooled(student, size), pooled(teacher, size))
    return loss / total
