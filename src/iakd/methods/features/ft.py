"""Factor transfer (Kim et al. 2018), weight, paraphraser and translator as in RepDistiller."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.methods.features.at import attention
from iakd.methods.features.maps import as_maps, level_shapes, of_one_size, refuse_tokens
from iakd.methods.features.phases import first_steps
from iakd.methods.part import Part, Setting, Step
from iakd.models.walk import Needs

SLOPE = 0.1  # of the leaky ReLUs


class Ft(Part):
    """weight·factor_loss of the last maps, once the paraphraser has learnt.

    In the first share of the steps the paraphraser learns to rebuild the teacher's maps from fewer channels, while the
    student learns from labels alone. Then it is fixed, and the student's translator is to give what it gives.
    """

    looks_inside = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        refuse_tokens(setting, "ft")
        options = setting.method.ft
        self.weight = options.weight
        self.first = first_steps(setting, options.pretrain)
        pair = setting.levels[-1]
        self.ours, self.theirs = pair.ours.last, pair.theirs.last
        self.student_needs = Needs(blocks=frozenset({self.ours}))
        self.teacher_needs = Needs(blocks=frozenset({self.theirs}))
        (ours, *_), (theirs, *_) = level_shapes(setting)[-1]
        factors = max(1, int(theirs * options.rate))
        self.paraphraser = _layers([theirs, theirs, factors, factors], nn.Conv2d, normalised=False)
        self.rebuilder = _layers([factors, factors, theirs, theirs], nn.ConvTranspose2d, normalised=False)
        self.translator = _layers([ours, ours, factors, factors], nn.Conv2d, normalised=True)

    def terms(self, step: Step) -> dict[str, Tensor]:
        theirs = as_maps(step.teacher.blocks[self.theirs])
        if step.number < self.first:
            return {"ft_paraphraser": F.mse_loss(self.rebuilder(self.paraphraser(theirs)), theirs)}
        with torch.no_grad():  # so the paraphraser has no gradient any more, and rests
            factors = self.paraphraser(theirs)
        return {"ft": self.weight * factor_loss(self.translator(as_maps(step.student.blocks[self.ours])), factors)}


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the attention of factors (B, C, H, W)."""
    ours, theirs = of_one_size(student, teacher)
    return (attention(ours) - attention(theirs)).abs().mean()


def _layers(channels: list[int], convolution: type[nn.Module], normalised: bool) -> nn.Sequential:
    """3×3 convolutions from each number of channels to the next, with leaky ReLUs."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(convolution(before, after, 3, 1, 1))
        if normalised:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)
