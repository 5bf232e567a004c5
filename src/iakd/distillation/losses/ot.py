"""Optimal transport between sets of feature vectors, of an image or of a batch, by the Sinkhorn divergence.

As in geomloss, the library of Feydy et al. 2019: cost |x − y|²/2, symmetric updates in the log domain while ε decreases
geometrically, and gradients by the envelope theorem, that is through the cost alone. Unlike there, the number of
updates does not depend on the points, so nothing waits for the device.
"""

import math

import torch
from torch import Tensor, nn

from iakd.config.method_options import OtOptions
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import as_maps
from iakd.models.features import POOLED, FeatureSpec
from iakd.models.shapes import channels

UPDATES = 12  # from the sets' diameter down to the blur; on random points 400 change the divergence by 1 %
MIN_EXPONENT = -80.0  # of a weight; on CPUs exp takes ten times as long where it underflows


class OTLoss(DistillationLoss):
    """CE + weight·mean over the sets of S_ε(student's feature vectors, teacher's feature vectors), ε = blur².

    A set is an image: the vectors at all positions of the last stage's maps, or the tokens. They need not correspond,
    and their numbers may differ. Or the only set is the batch: the pooled features of its images, whose distribution is
    compared, not those of each image. If the teacher's are of another length, the student's go through a linear
    projection (a 1×1 convolution), which is trained with the student.
    Idea: OT-KD; S_ε: Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences, AISTATS
    2019, equations 1 and 3.
    """

    uses_hidden_features = True
    graph_safe = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: OtOptions = context.options
        if self.options.sets == "images":
            self.student_features = self.teacher_features = POOLED
            self.cross_sample = True
            sizes = context.pooled_sizes
        else:
            pair = context.levels[-1]
            self.student_block, self.teacher_block = pair.student.last, pair.teacher.last
            self.student_features = FeatureSpec(blocks=frozenset({self.student_block}))
            self.teacher_features = FeatureSpec(blocks=frozenset({self.teacher_block}))
            sizes = channels(pair.student.after), channels(pair.teacher.after)
        self.project = nn.Identity() if sizes[0] == sizes[1] else nn.Linear(*sizes, bias=False)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        if self.options.sets == "images":
            assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
            student, teacher = outputs.student.pooled.float()[None], outputs.teacher.pooled.float()[None]
        else:
            student = vectors(outputs.student.blocks[self.student_block])
            teacher = vectors(outputs.teacher.blocks[self.teacher_block])
        divergence = sinkhorn_divergence(self.project(student), teacher, self.options.blur)
        return {"ot": self.options.weight * divergence.mean()}


def vectors(features: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as one vector per position, (B, H·W, C), and tokens (B, N, C) as they are; float32."""
    return as_maps(features).flatten(2).transpose(1, 2)


def sinkhorn_divergence(x: Tensor, y: Tensor, blur: float, updates: int = UPDATES) -> Tensor:
    """Return S_ε = OT_ε(x, y) − OT_ε(x, x)/2 − OT_ε(y, y)/2 of each pair of sets, float32 (B,); ε = blur².

    `x` (B, N, D) and `y` (B, M, D) are points of equal weight. OT_ε is the entropic optimal transport cost (Feydy et
    al. 2019, equations 1 and 3). S_ε is symmetric, at least 0, and 0 for equal sets; both arguments get gradients.
    """
    x, y = x.float(), y.float()
    # only differences matter, and small numbers are rounded less
    centre = y.detach().mean(dim=1, keepdim=True)
    x, y = x - centre, y - centre
    across, back = _costs(x, y.detach()), _costs(y, x.detach())
    within_x, within_y = _costs(x, x.detach()), _costs(y, y.detach())
    with torch.no_grad():
        f, g, p, q, epsilon = _potentials(across, within_x, within_y, blur, updates)
    # one more update, without averaging: its derivative with respect to the cost is the transport plan
    gain_x = _softmin(across, g, epsilon) - _softmin(within_x, p, epsilon)
    gain_y = _softmin(back, f, epsilon) - _softmin(within_y, q, epsilon)
    return gain_x.mean(dim=1) + gain_y.mean(dim=1)


def _costs(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i − y_j|²/2 at [i, j], (B, N, M)."""
    squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :]
    return (squares / 2).baddbmm(x, y.transpose(1, 2), alpha=-1).clamp_min(0)


def _softmin(costs: Tensor, potential: Tensor, epsilon: Tensor) -> Tensor:
    """Return −ε·log mean_j exp((potential_j − costs_ij)/ε), (B, N)."""
    scores = (potential[:, None, :] - costs) / epsilon[:, None, None]
    highest = scores.detach().amax(dim=2, keepdim=True)
    weights = (scores - highest).clamp_min(MIN_EXPONENT).exp()
    return epsilon[:, None] * (math.log(costs.shape[2]) - highest[:, :, 0] - weights.sum(dim=2).log())


def _potentials(
    across: Tensor, within_x: Tensor, within_y: Tensor, blur: float, updates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return dual potentials: of x and of y for OT(x, y), of OT(x, x) and of OT(y, y); and the last ε, (B,)."""
    back = across.transpose(1, 2)
    last = torch.full_like(across[:, 0, 0], blur**2)
    first = (2 * across.amax(dim=(1, 2))).maximum(last)  # the squared diameter
    zero_x, zero_y = torch.zeros_like(across[:, :, 0]), torch.zeros_like(across[:, 0, :])
    f, g = _softmin(across, zero_y, first), _softmin(back, zero_x, first)
    p, q = _softmin(within_x, zero_x, first), _softmin(within_y, zero_y, first)
    for update in range(updates):
        epsilon = first * (last / first) ** (update / (updates - 1))
        f, g = (f + _softmin(across, g, epsilon)) / 2, (g + _softmin(back, f, epsilon)) / 2
        p, q = (p + _softmin(within_x, p, epsilon)) / 2, (q + _softmin(within_y, q, epsilon)) / 2
    return f, g, p, q, last
