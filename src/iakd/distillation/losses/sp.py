"""Similarity-preserving distillation: similarities between the images of a batch, by their last feature maps."""

from torch import Tensor

from iakd.config.method_options import SpOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import unit
from iakd.models.features import FeatureSpec


class SPLoss(DistillationLoss):
    """CE + weight·‖G_s − G_t‖²/B², G the Gram matrix of the last features of a batch, its rows scaled to length 1.

    Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; weight as in RepDistiller.
    """

    uses_hidden_features = True
    cross_sample = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: SpOptions = context.options
        pair = context.levels[-1]
        self.student_block, self.teacher_block = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.student_block}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.teacher_block}))

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        student = outputs.student.blocks[self.student_block]
        teacher = outputs.teacher.blocks[self.teacher_block]
        return {"sp": self.options.weight * similarity_loss(student, teacher)}


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ‖G_s − G_t‖²/B² of features (B, …) of any shapes: G = F·Fᵀ of the flattened ones, rows of length 1."""
    student, teacher = (unit(flat @ flat.T) for flat in (student.float().flatten(1), teacher.float().flatten(1)))
    return (student - teacher).square().mean()
