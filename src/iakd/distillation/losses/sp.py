"""Similarity-preserving distillation (Tung and Mori 2019), weight as in RepDistiller."""

from torch import Tensor

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import unit
from iakd.models.features import FeatureSpec


class SPLoss(DistillationLoss):
    """weight·similarity_loss of the last maps."""

    uses_hidden_features = True
    cross_sample = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.weight = context.options.weight
        last = context.levels[-1]
        self.places = last.student.last, last.teacher.last
        self.student_features, self.teacher_features = (FeatureSpec(blocks=frozenset({place})) for place in self.places)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        ours, theirs = self.places
        return {"sp": self.weight * similarity_loss(outputs.student.blocks[ours], outputs.teacher.blocks[theirs])}


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s − G_t‖²/B² of features (B, …) of any sizes: G = F·Fᵀ of the flattened ones, rows of length 1."""
    ours, theirs = (unit(flat @ flat.T) for flat in (student.float().flatten(1), teacher.float().flatten(1)))
    return (ours - theirs).square().mean()
