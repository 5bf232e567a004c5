"""Flow of the solution procedure: products of successive feature maps, learned in a first phase."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import FspOptions
from iakd.distillation.loss import ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import as_maps, level_maps, level_shapes, map_shape, match_sizes
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.errors import UnsuitableSettings
from iakd.models import Network
from iakd.models.features import Features, FeatureSpec
from iakd.models.shapes import feature_shapes


class FSPLoss(FirstPhaseLoss):
    """First phase: weight·Σ MSE(G_s, G_t), G the `flows` between successive levels; then CE alone.

    The maps after the stem come before those of the first level; in a network without a stem, those after the first
    stage, unless they are the first level themselves. Yim et al., A Gift from Knowledge Distillation, CVPR 2017;
    phases, levels and weight as in RepDistiller.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        options: FspOptions = context.options
        super().__init__(context, options.pretrain)
        self.options = options
        self.context = context
        self.student_start, self.teacher_start = _first_block(context.student), _first_block(context.teacher)
        first = context.levels[0]
        self.with_start = self.student_start < first.student.last and self.teacher_start < first.teacher.last
        self.student_features, self.teacher_features = features_at_levels(context)
        _require_different_blocks(context)
        shapes = level_shapes(context)
        if self.with_start:
            self.student_features |= _start_spec(self.student_start)
            self.teacher_features |= _start_spec(self.teacher_start)
            student_shapes, teacher_shapes = (
                feature_shapes(network, context.image) for network in (context.student, context.teacher)
            )
            start = student_shapes[self.student_start + 1], teacher_shapes[self.teacher_start + 1]
            shapes.insert(0, (map_shape(start[0]), map_shape(start[1])))
        for level, (student, teacher) in enumerate(shapes, 1 - self.with_start):
            if student[0] != teacher[0]:
                kind = "hint point" if context.chosen_levels else "level"
                where = f"at {kind} {level}" if level else "at the start"
                raise UnsuitableSettings(
                    f"fsp needs networks with equal channels, but {where} the student has {student[0]} and the "
                    f"teacher {teacher[0]}; choose networks of equal width, or another method"
                )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        maps = level_maps(self.context, outputs)
        if self.with_start:
            maps.insert(0, (_start(outputs.student, self.student_start), _start(outputs.teacher, self.teacher_start)))
        student, teacher = zip(*maps, strict=True)
        losses = [F.mse_loss(g_s, g_t) for g_s, g_t in zip(flows(student), flows(teacher), strict=True)]
        return {"fsp": self.options.weight * sum(losses[1:], losses[0])}


def _require_different_blocks(context: LossContext) -> None:
    """Raise UnsuitableSettings if two levels are the same block of the student, between which nothing flows."""
    for lower, upper in pairwise(pair.student.last for pair in context.levels):
        if lower == upper:
            raise UnsuitableSettings(
                f"fsp compares successive blocks, but two hint points are at the student's block {lower + 1}; "
                "lower hint_points.points, or choose a deeper student"
            )


STEM = -1  # in place of the number of a block


def _first_block(network: Network) -> int:
    """Return the block after which a network's first maps are taken."""
    return len(network.stages[0]) - 1 if isinstance(network.stem, nn.Identity) else STEM  # type: ignore[arg-type]


def _start_spec(block: int) -> FeatureSpec:
    return FeatureSpec(stem=True) if block == STEM else FeatureSpec(blocks=frozenset({block}))


def _start(features: Features, block: int) -> Tensor:
    maps = features.stem if block == STEM else features.blocks[block]
    assert maps is not None
    return as_maps(maps)


def flows(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the FSP matrix (B, C, C') of each two successive maps (B, C, H, W) and (B, C', H', W').

    Its elements are products of two channels, one of either map, mean over the positions (equation 1 of the paper).
    """
    matrices = []
    for lower, upper in pairwise(maps):
        lower, upper = (each.flatten(2) for each in match_sizes(lower, upper))
        matrices.append(lower @ upper.transpose(1, 2) / lower.shape[2])
    return matrices
