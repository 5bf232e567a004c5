"""Factor transfer: the teacher's last maps, paraphrased in fewer channels."""

from collections.abc import Hashable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iakd.config.method_options import FtOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.at import attention
from iakd.distillation.losses.maps import as_maps, level_shapes, match_sizes, require_maps
from iakd.distillation.losses.phases import first_steps
from iakd.models.features import FeatureSpec

SLOPE = 0.1  # of the leaky ReLUs


class FTLoss(DistillationLoss):
    """CE + weight·factor_loss(translator(student's last maps), paraphraser(teacher's last maps)), in two phases.

    First phase: the paraphraser, the encoder of an autoencoder, learns to reconstruct the teacher's maps from fewer
    channels, the factors, while the student learns from labels alone. Second phase: the paraphraser is frozen, and the
    student's translator learns to produce the same factors.
    Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018, in RepDistiller's
    form: it compares where factors are strong, not the factors themselves as the paper does (see `factor_loss`).
    Weight, paraphraser and translator are RepDistiller's too.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        require_maps(context, "ft")
        self.options: FtOptions = context.options
        self.first_phase = first_steps(context, self.options.pretrain)
        pair = context.levels[-1]
        self.student_block, self.teacher_block = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.student_block}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.teacher_block}))
        (student, *_), (teacher, *_) = level_shapes(context)[-1]  # channels
        factors = max(1, int(teacher * self.options.rate))
        self.paraphraser = _layers([teacher, teacher, factors, factors], nn.Conv2d, normalised=False)
        self.rebuilder = _layers([factors, factors, teacher, teacher], nn.ConvTranspose2d, normalised=False)
        self.translator = _layers([student, student, factors, factors], nn.Conv2d, normalised=True)

    def graph_key(self, step: int) -> Hashable:
        return step < self.first_phase

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        teacher = as_maps(outputs.teacher.blocks[self.teacher_block])
        if outputs.step < self.first_phase:
            return {"ft_paraphraser": F.mse_loss(self.rebuilder(self.paraphraser(teacher)), teacher)}
        with torch.no_grad():  # without a gradient, the optimiser leaves the paraphraser unchanged
            teacher_factors = self.paraphraser(teacher)
        student_factors = self.translator(as_maps(outputs.student.blocks[self.student_block]))
        return {"ft": self.options.weight * factor_loss(student_factors, teacher_factors)}


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean absolute difference of the attention of factors (B, C, H, W) and (B, C, H', W').

    Attention is the mean square over the channels, scaled to length 1, as in RepDistiller. The paper and its authors'
    code scale all of an image's factors to length 1 and compare them element by element.
    """
    student, teacher = match_sizes(student, teacher)
    return (attention(student) - attention(teacher)).abs().mean()


def _layers(channels: list[int], convolution: type[nn.Module], normalised: bool) -> nn.Sequential:
    """Return 3×3 convolutions from each number of channels to the next, with leaky ReLUs."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(convolution(before, after, 3, 1, 1))
        if normalised:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)
