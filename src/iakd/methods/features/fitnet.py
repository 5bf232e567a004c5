"""Hints (FitNets, Romero et al. 2015), trained from the start, weight and regressor as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.errors import UserError
from iakd.methods.features.maps import as_maps, level_shapes, of_one_size
from iakd.methods.features.regressor import Regressor
from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import Needs


class Fitnet(Part):
    """weight·MSE(regressor(student's maps), teacher's maps) at one level; the regressor learns along."""

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        options = setting.method.fitnet
        self.weight = options.weight
        shapes = level_shapes(setting)
        if options.level > len(shapes):
            raise UserError(f"fitnet.level is {options.level}, but this pair has {len(shapes)} levels to compare at")
        pair = setting.levels[options.level - 1]
        self.ours, self.theirs = pair.ours.last, pair.theirs.last
        self.student_needs = Needs(blocks=frozenset({self.ours}))
        self.teacher_needs = Needs(blocks=frozenset({self.theirs}))
        self.regressor = Regressor(*shapes[options.level - 1], active=True)

    def terms(self, step: Step) -> dict[str, Tensor]:
        hint = as_maps(step.teacher.blocks[self.theirs])
        guess = self.regressor(as_maps(step.student.blocks[self.ours]))
        return {"fitnet": self.weight * F.mse_loss(*of_one_size(guess, hint))}
