"""Factor transfer (Kim et al. 2018), weight, paraphraser and translator as in RepDistiller."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.at import attention
from iakd.distillation.losses.maps import as_maps, level_shapes, of_one_size, refuse_tokens
from iakd.distillation.losses.phases import first_steps
from iakd.models.features import FeatureSpec

SLOPE = 0.1  # of the leaky ReLUs


class FTLoss(DistillationLoss):
    """weight·factor_loss of the last maps, once the paraphraser has learnt.

    In the first share of the steps the paraphraser learns to rebuild the teacher's maps from fewer channels, while the
    student learns from labels alone. Then it is fixed, and the student's translator is to give what it gives.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        refuse_tokens(context, "ft")
        options = context.options
        self.weight = options.weight
        self.first = first_steps(context, options.pretrain)
        pair = context.levels[-1]
        self.ours, self.theirs = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.ours}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.theirs}))
        (ours, *_), (theirs, *_) = level_shapes(context)[-1]
        factors = max(1, int(theirs * options.rate))
        self.paraphraser = _layers([theirs, theirs, factors, factors], nn.Conv2d, normalised=False)
        self.rebuilder = _layers([factors, factors, theirs, theirs], nn.ConvTranspose2d, normalised=False)
        self.translator = _layers([ours, ours, factors, factors], nn.Conv2d, normalised=True)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        theirs = as_maps(outputs.teacher.blocks[self.theirs])
        if outputs.step < self.first:
            return {"ft_paraphraser": F.mse_loss(self.rebuilder(self.paraphraser(theirs)), theirs)}
        with torch.no_grad():  # so the paraphraser has no gradient any more, and rests
            factors = self.paraphraser(theirs)
        return {"ft": self.weight * factor_loss(self.translator(as_maps(outputs.student.blocks[self.ours])), factors)}


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
