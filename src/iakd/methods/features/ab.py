"""Activation boundaries (Heo et al. 2019): a first phase on them alone, then the labels, as in RepDistiller."""

from torch import Tensor, nn

from iakd.methods.features.maps import level_shapes, of_one_size, refuse_tokens
from iakd.methods.features.phases import FirstPhase
from iakd.methods.features.regressor import Regressor
from iakd.methods.part import Setting, Step
from iakd.models.walk import Needs

SCALE = 3 / 1000  # of the loss, in the authors' code


class Ab(FirstPhase):
    """weight·Σ 2^(l − L + 1)·0.003·boundary_loss over the levels l = 0 … L − 1, of features before their activation.

    Where shapes differ, the student's go through a regressor without activation, which learns along.
    """

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        options = setting.method.ab
        super().__init__(setting, options.pretrain)
        refuse_tokens(setting, "ab")
        self.weight, self.margin = options.weight, options.margin
        self.places = [(pair.ours.last, pair.theirs.last) for pair in setting.levels]
        ours, theirs = zip(*self.places, strict=True)
        self.student_needs = Needs(preactivations=frozenset(ours))
        self.teacher_needs = Needs(preactivations=frozenset(theirs))
        self.connectors = nn.ModuleList(
            nn.Identity() if student == teacher else Regressor(student, teacher, active=False)
            for student, teacher in level_shapes(setting)
        )

    def terms(self, step: Step) -> dict[str, Tensor]:
        losses = []
        for level, (connector, (ours, theirs)) in enumerate(zip(self.connectors, self.places, strict=True)):
            student = connector(step.student.preactivations[ours].float())
            maps = of_one_size(student, step.teacher.preactivations[theirs].float())
            losses.append(2.0 ** (level - len(self.places) + 1) * boundary_loss(*maps, self.margin))
        return {"ab": self.weight * SCALE * sum(losses[1:], losses[0])}


def boundary_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """How far the student's values are from being on the teacher's side of 0 by `margin`, squared.

    Sum over each image's values, mean over the images, of preactivations (B, …).
    """
    shortfall = (margin - student * teacher.sign().where(teacher != 0, -1.0)).relu()
    return shortfall.square().sum() / len(student)
