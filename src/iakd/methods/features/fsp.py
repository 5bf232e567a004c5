"""Flow of the solution procedure (Yim et al. 2017): a first phase on it alone, then the labels, as in RepDistiller."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from iakd.errors import UserError
from iakd.methods.features.maps import as_maps, level_maps, level_shapes, map_shape, of_one_size
from iakd.methods.features.phases import FirstPhase
from iakd.methods.part import Setting, Step, at_levels
from iakd.models.walk import Needs


class Fsp(FirstPhase):
    """weight·Σ flow_loss between successive levels, the stem first, where both networks have one."""

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        options = setting.method.fsp
        super().__init__(setting, options.pretrain)
        self.setting = setting
        self.weight = options.weight
        self.stem = not any(isinstance(net.stem, nn.Identity) for net in (setting.student, setting.teacher))
        ours, theirs = at_levels(setting)
        self.student_needs, self.teacher_needs = ours | Needs(stem=self.stem), theirs | Needs(stem=self.stem)
        shapes = level_shapes(setting)
        if self.stem:
            our_stem, their_stem = setting.stem_shapes
            shapes.insert(0, (map_shape(our_stem), map_shape(their_stem)))
        for position, (student, teacher) in enumerate(shapes, 1 - self.stem):
            if student[0] != teacher[0]:
                place = f"after stage {position}" if position else "after the stem"
                raise UserError(
                    f"fsp compares products of channels, and {place} the student has {student[0]} of them where the "
                    f"teacher has {teacher[0]}; choose networks of equal width, or another method"
                )

    def terms(self, step: Step) -> dict[str, Tensor]:
        maps = level_maps(self.setting, step)
        if self.stem:
            assert step.student.stem is not None and step.teacher.stem is not None
            maps.insert(0, (as_maps(step.student.stem), as_maps(step.teacher.stem)))
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
