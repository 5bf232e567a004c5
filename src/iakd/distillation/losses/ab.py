"""Activation boundaries: the student's neurons should be active where the teacher's are, learned in a first phase."""

from torch import Tensor, nn

from iakd.config.method_options import AbOptions
from iakd.distillation.loss import ForwardOutputs, LossContext
from iakd.distillation.losses.maps import Regressor, level_shapes, match_sizes, require_maps
from iakd.distillation.losses.phases import FirstPhaseLoss
from iakd.models.features import FeatureSpec

SCALE = 3 / 1000  # factor of the loss in the authors' code


class ABLoss(FirstPhaseLoss):
    """First phase: weight·Σ_l 2^(l − L + 1)·0.003·boundary_loss over the levels l = 0 … L − 1; then CE alone.

    The features are compared before their activation. If shapes differ, a regressor without activation, trained with
    the student, predicts the teacher's. Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed
    by Hidden Neurons, AAAI 2019; phases and weights as in RepDistiller.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        options: AbOptions = context.options
        super().__init__(context, options.pretrain)
        self.options = options
        require_maps(context, "ab")
        self.block_positions = [(pair.student.last, pair.teacher.last) for pair in context.levels]
        student_blocks, teacher_blocks = zip(*self.block_positions, strict=True)
        self.student_features = FeatureSpec(preactivations=frozenset(student_blocks))
        self.teacher_features = FeatureSpec(preactivations=frozenset(teacher_blocks))
        self.connectors = nn.ModuleList(
            nn.Identity() if student == teacher else Regressor(student, teacher, active=False)
            for student, teacher in level_shapes(context)
        )

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        count = len(self.block_positions)
        losses = []
        for level, (connector, (student_block, teacher_block)) in enumerate(
            zip(self.connectors, self.block_positions, strict=True)
        ):
            student = connector(outputs.student.preactivations[student_block].float())
            maps = match_sizes(student, outputs.teacher.preactivations[teacher_block].float())
            losses.append(2.0 ** (level - count + 1) * boundary_loss(*maps, self.options.margin))
        return {"ab": self.options.weight * SCALE * sum(losses[1:], losses[0])}


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Return max(0, margin − s·sign(t))², summed over an image's preactivations (B, …), mean over the images.

    It is 0 where the student's value is on the teacher's side of 0 by at least `margin`; sign(0) counts as −1.
    """
    shortfall = (margin - student * teacher.sign().where(teacher != 0, -1.0)).relu()
    return shortfall.square().sum() / len(student)
