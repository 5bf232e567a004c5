"""Activation boundaries (Heo et al. 2019): a first phase on them alone, then the labels, as in RepDistiller."""

from torch import Tensor, nn

from iakd.distillation.loss import ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, level_shapes, of_one_size, refuse_tokens
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.models.features import FeatureSpec

SCALE = 3 / 1000  # of the loss, in the authors' code


class ABLoss(FirstPhaseLoss):
    """weight·Σ 2^(l − L + 1)·0.003·boundary_loss over the levels l = 0 … L − 1, of features before their activation.

    Where shapes differ, the student's go through a regressor without activation, which learns along.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        options = context.options
        super().__init__(context, options.pretrain)
        refuse_tokens(context, "ab")
        self.weight, self.margin = options.weight, options.margin
        self.places = [(pair.student.last, pair.teacher.last) for pair in context.levels]
        ours, theirs = zip(*self.places, strict=True)
        self.student_features = FeatureSpec(preactivations=frozenset(ours))
        self.teacher_features = FeatureSpec(preactivations=frozenset(theirs))
        self.connectors = nn.ModuleList(
            nn.Identity() if student == teacher else Regressor(student, teacher, active=False)
            for student, teacher in level_shapes(context)
        )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        losses = []
        for level, (connector, (ours, theirs)) in enumerate(zip(self.connectors, self.places, strict=True)):
            student = connector(outputs.student.preactivations[ours].float())
            maps = of_one_size(student, outputs.teacher.preactivations[theirs].float())
            losses.append(2.0 ** (level - len(self.places) + 1) * boundary_loss(*maps, self.margin))
        return {"ab": self.weight * SCALE * sum(losses[1:], losses[0])}


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """How far the student's values are from being on the teacher's side of 0 by `margin`, squared.

    Sum over each image's values, mean over the images, of preactivations (B, …).
    """
    shortfall = (margin - student * teacher.sign().where(teacher != 0, -1.0)).relu()
    return shortfall.square().sum() / len(student)
