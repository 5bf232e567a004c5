"""Distillation by optimal transport between the features of one image, as in OT-KD."""

from torch import Tensor, nn

from iakd.methods.features.maps import as_maps
from iakd.methods.features.sinkhorn import sinkhorn_divergence
from iakd.methods.part import Part, Setting, Step
from iakd.models.shapes import channels
from iakd.models.walk import Needs


class Ot(Part):
    """weight·(Sinkhorn divergence between student's and teacher's feature vectors), mean over the images, beside CE.

    The vectors are those at all places of the last stage's map, or the tokens; places need not correspond, nor be
    equally many. The student's go through a linear projection (a 1×1 convolution) where the teacher's are of another
    length.
    """

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.options = setting.method.ot
        pair = setting.levels[-1]
        self.ours, self.theirs = pair.ours.last, pair.theirs.last
        self.student_needs = Needs(blocks=frozenset({self.ours}))
        self.teacher_needs = Needs(blocks=frozenset({self.theirs}))
        sizes = channels(pair.ours.after), channels(pair.theirs.after)
        self.project = nn.Identity() if sizes[0] == sizes[1] else nn.Linear(*sizes, bias=False)

    def terms(self, step: Step) -> dict[str, Tensor]:
        ours = self.project(vectors(step.student.blocks[self.ours]))
        theirs = vectors(step.teacher.blocks[self.theirs])
        return {"ot": self.options.weight * sinkhorn_divergence(ours, theirs, self.options.blur).mean()}


def vectors(features: Tensor) -> Tensor:
    """Maps (B, C, H, W) as one vector a place, (B, H·W, C); tokens (B, N, C) as they are. Float32."""
    return as_maps(features).flatten(2).transpose(1, 2)
