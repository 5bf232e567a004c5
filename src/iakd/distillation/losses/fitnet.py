"""Hints (FitNets, Romero et al. 2015), trained from the start, weight and regressor as in RepDistiller."""

import torch.nn.functional as F
from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, as_maps, level_shapes, of_one_size
from iakd.errors import UserError
from iakd.models.features import FeatureSpec


class FitNetLoss(DistillationLoss):
    """weight·MSE(regressor(student's maps), teacher's maps) at one level; the regressor learns along."""

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        options = context.options
        self.weight = options.weight
        shapes = level_shapes(context)
        if options.level > len(shapes):
            raise UserError(f"fitnet.level is {options.level}, but this pair has {len(shapes)} levels to compare at")
        pair = context.levels[options.level - 1]
        self.ours, self.theirs = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.ours}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.theirs}))
        student, teacher = shapes[options.level - 1]
        self.regressor = Regressor(student, teacher, active=True)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        hint = as_maps(outputs.teacher.blocks[self.theirs])
        guess = self.regressor(as_maps(outputs.student.blocks[self.ours]))
        return {"fitnet": self.weight * F.mse_loss(*of_one_size(guess, hint))}
