"""Flow of the solution procedure (Yim et al. 2017): a first phase on it alone, then the labels, as in RepDistiller."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import ForwardOutputs, LossContext, features_at_levels
from iakd.distillation.losses.maps import as_maps, level_maps, level_shapes, map_shape, of_one_size
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.errors import UserError
from iakd.models.features import FeatureSpec


class FSPLoss(FirstPhaseLoss):
    """weight·Σ flow_loss between successive levels, the stem first, where both networks have one."""

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        options = context.options
        super().__init__(context, options.pretrain)
        self.context = context
        self.weight = options.weight
        self.stem = not any(isinstance(net.stem, nn.Identity) for net in (context.student, context.teacher))
        ours, theirs = features_at_levels(context)
        self.student_features, self.teacher_features = (
            ours | FeatureSpec(stem=self.stem),
            theirs | FeatureSpec(stem=self.stem),
        )
        shapes = level_shapes(context)
        if self.stem:
            our_stem, their_stem = context.stem_shapes
            shapes.insert(0, (map_shape(our_stem), map_shape(their_stem)))
        for position, (student, teacher) in enumerate(shapes, 1 - self.stem):
            if student[0] != teacher[0]:
                place = f"after stage {position}" if position else "after the stem"
                raise UserError(
                    f"fsp compares products of channels, and {place} the student has {student[0]} of them where the "
                    f"teacher has {teacher[0]}; choose networks of equal width, or another method"
                )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        maps = level_maps(self.context, outputs)
        if self.stem:
            assert outputs.student.stem is not None and outputs.teacher.stem is not None
            maps.insert(0, (as_maps(outputs.student.stem), as_maps(outputs.teacher.stem)))
        ours, theirs = zip(*maps, strict=True)
        losses = [F.mse_loss(s, t) for s, t in zip(flows(ours), flows(theirs), strict=True)]
        return {"fsp": self.weight * sum(losses[1:], losses[0])}


def flows(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """For each two successive maps the mean over places of products of their channels, (B, C, H, W)… → (B, C, C′)…"""
    result = []
    for lower, upper in pairwise(maps):
        lower, upper = (each.flatten(2) for each in of_one_size(lower, upper))
        result.append(lower @ upper.transpose(1, 2) / lower.shape[2])
    return result
