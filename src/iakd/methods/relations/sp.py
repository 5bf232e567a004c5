"""Similarity-preserving distillation (Tung and Mori 2019), weight as in RepDistiller."""

from torch import Tensor

from iakd.methods.geometry import unit
from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import Needs


class Sp(Part):
    """weight·similarity_loss of the last maps."""

    looks_inside = True
    across_images = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.weight = setting.method.sp.weight
        last = setting.levels[-1]
        self.places = last.ours.last, last.theirs.last
        self.student_needs, self.teacher_needs = (Needs(blocks=frozenset({place})) for place in self.places)

    def terms(self, step: Step) -> dict[str, Tensor]:
        ours, theirs = self.places
        return {"sp": self.weight * similarity_loss(step.student.blocks[ours], step.teacher.blocks[theirs])}


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s − G_t‖²/B² of features (B, …) of any sizes: G = F·Fᵀ of the flattened ones, rows of length 1."""
    ours, theirs = (unit(flat @ flat.T) for flat in (student.float().flatten(1), teacher.float().flatten(1)))
    return (ours - theirs).square().mean()
