"""Flow of the solution procedure: products of successive feature maps, learned in a first phase."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import FspOptions
from iakd.distillation.loss import ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import as_maps, level_maps, level_shapes, map_shape, match_sizes
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.errors import UserError
from iakd.models.features import FeatureSpec


class FSPLoss(FirstPhaseLoss):
    """First phase: weight·Σ MSE(G_s, G_t), G the `flows` between successive levels; then CE alone.

    The stem is the first level if both networks have one. Yim et al., A Gift from Knowledge Distillation, CVPR 2017;
    phases and weight as in RepDistiller.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        options: FspOptions = context.options
        super().__init__(context, options.pretrain)
        self.options = options
        self.context = context
        self.with_stem = not any(isinstance(net.stem, nn.Identity) for net in (context.student, context.teacher))
        student_features, teacher_features = features_at_levels(context)
        self.student_features = student_features | FeatureSpec(stem=self.with_stem)
        self.teacher_features = teacher_features | FeatureSpec(stem=self.with_stem)
        _require_different_blocks(context)
        shapes = level_shapes(context)
        if self.with_stem:
            student_stem, teacher_stem = context.stem_shapes
            shapes.insert(0, (map_shape(student_stem), map_shape(teacher_stem)))
        for level, (student, teacher) in enumerate(shapes, 1 - self.with_stem):
            if student[0] != teacher[0]:
                kind = "hint point" if context.chosen_levels else "stage"
                where = f"after {kind} {level}" if level else "after the stem"
                raise UserError(
                    f"fsp needs networks with equal channels, but {where} the student has {student[0]} and the "
                    f"teacher {teacher[0]}; choose networks of equal width, or another method"
                )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        maps = level_maps(self.context, outputs)
        if self.with_stem:
            assert outputs.student.stem is not None and outputs.teacher.stem is not None
            maps.insert(0, (as_maps(outputs.student.stem), as_maps(outputs.teacher.stem)))
        student, teacher = zip(*maps, strict=True)
        losses = [F.mse_loss(g_s, g_t) for g_s, g_t in zip(flows(student), flows(teacher), strict=True)]
        return {"fsp": self.options.weight * sum(losses[1:], losses[0])}


def _require_different_blocks(context: LossContext) -> None:
    """Raise UserError if two levels are the same block of the student, between which nothing flows."""
    for lower, upper in pairwise(pair.student.last for pair in context.levels):
        if lower == upper:
            raise UserError(
                f"fsp compares successive blocks, but two hint points are at the student's block {lower + 1}; "
                "lower hint_points.points, or choose a deeper student"
            )


def flows(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the FSP matrix (B, C, C') of each two successive maps (B, C, H, W) and (B, C', H', W').

    Its elements are products of two channels, one of either map, mean over the positions (equation 1 of the paper).
    """
    matrices = []
    for lower, upper in pairwise(maps):
        lower, upper = (each.flatten(2) for each in match_sizes(lower, upper))
        matrices.append(lower @ upper.transpose(1, 2) / lower.shape[2])
    return matrices
