"""FitNets: a hint, the teacher's feature maps at one level, is predicted from the student's."""

import torch.nn.functional as F
from torch import Tensor

from iakd.config.method_options import FitnetOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, as_maps, level_shapes, match_sizes
from iakd.errors import UnsuitableSettings
from iakd.models.features import FeatureSpec


class FitNetLoss(DistillationLoss):
    """CE + weight·MSE(regressor(student's maps), teacher's maps) at one level.

    Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, equation 3, but from the first step on, with the
    cross-entropy; weight and regressor as in RepDistiller. The regressor is trained with the student.
    """

    uses_hidden_features = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: FitnetOptions = context.options
        level = self.options.level
        shapes = level_shapes(context)
        if level > len(shapes):
            raise UnsuitableSettings(f"fitnet.level is {level}, but this pair has {len(shapes)} levels")
        pair = context.levels[level - 1]
        self.student_block, self.teacher_block = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.student_block}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.teacher_block}))
        student, teacher = shapes[level - 1]
        self.regressor = Regressor(student, teacher, active=True)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        hint = as_maps(outputs.teacher.blocks[self.teacher_block])
        prediction = self.regressor(as_maps(outputs.student.blocks[self.student_block]))
        return {"fitnet": self.options.weight * F.mse_loss(*match_sizes(prediction, hint))}
