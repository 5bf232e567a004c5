"""The Sinkhorn divergence between sets of points (Feydy et al. 2019), for many pairs of sets at once.

As in its authors' library: cost |x − y|²/2, symmetric updates in the log domain while ε falls geometrically, and
gradients by the envelope theorem, that is through the cost alone. Unlike there, the number of updates does not depend
on the points, so that nothing waits for the device.
"""

import math

import torch
from torch import Tensor, nn

from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.losses.maps import as_maps
from iakd.models.features import FeatureSpec
from iakd.models.shapes import channels

UPDATES = 12  # from the sets' diameter down to the blur; on random points 400 change the divergence by 1 %
LOWEST = -80.0  # exponent of a weight; on CPUs exp takes ten times as long where it underflows


def sinkhorn_divergence(x: Tensor, y: Tensor, blur: float, updates: int = UPDATES) -> Tensor:
    """S_ε = OT_ε(x, y) − OT_ε(x, x)/2 − OT_ε(y, y)/2 of each pair of sets, float32 (B,); ε = blur².

    `x` (B, N, D) and `y` (B, M, D): points of equal weight. OT_ε is the entropic optimal transport cost (Feydy et al.
    2019, equations 1 and 3). S_ε ≥ 0, and 0 for equal sets; it is symmetric, and both arguments get gradients.
    """
    x, y = x.float(), y.float()
    centre = y.detach().mean(
        dim=1, keepdim=True
    )  # the same for both: only differences count, and small ones round less
    x, y = x - centre, y - centre
    across, back = _costs(x, y.detach()), _costs(y, x.detach())
    within_x, within_y = _costs(x, x.detach()), _costs(y, y.detach())
    with torch.no_grad():
        f, g, p, q, epsilon = _potentials(across, within_x, within_y, blur, updates)
    # one more update without averaging: its derivative by the cost is the transport experiment
    gain_x = _softmin(across, g, epsilon) - _softmin(within_x, p, epsilon)
    gain_y = _softmin(back, f, epsilon) - _softmin(within_y, q, epsilon)
    return gain_x.mean(dim=1) + gain_y.mean(dim=1)


def _costs(x: Tensor, y: Tensor) -> Tensor:
    """|x_i − y_j|²/2, (B, N, M)."""
    squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :]
    return (squares / 2).baddbmm(x, y.transpose(1, 2), alpha=-1).clamp_min(0)


def _softmin(costs: Tensor, potential: Tensor, epsilon: Tensor) -> Tensor:
    """−ε·log mean_j exp((potential_j − costs_ij)/ε), (B, N)."""
    scores = (potential[:, None, :] - costs) / epsilon[:, None, None]
    highest = scores.detach().amax(dim=2, keepdim=True)
    weights = (scores - highest).clamp_min(LOWEST).exp()
    return epsilon[:, None] * (math.log(costs.shape[2]) - highest[:, :, 0] - weights.sum(dim=2).log())


def _potentials(
    across: Tensor, within_x: Tensor, within_y: Tensor, blur: float, updates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Dual potentials: of x and of y for OT(x, y), of OT(x, x) and OT(y, y); and the last ε, (B,)."""
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


class OTLoss(DistillationLoss):
    """weight·(Sinkhorn divergence between student's and teacher's feature vectors), mean over the images, beside CE.

    The vectors are those at all places of the last stage's map, or the tokens; places need not correspond, nor be
    equally many. The student's go through a linear projection (a 1×1 convolution) where the teacher's are of another
    length.
    """

    uses_hidden_features = True

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options = context.options
        pair = context.levels[-1]
        self.ours, self.theirs = pair.student.last, pair.teacher.last
        self.student_features = FeatureSpec(blocks=frozenset({self.ours}))
        self.teacher_features = FeatureSpec(blocks=frozenset({self.theirs}))
        sizes = channels(pair.student.after), channels(pair.teacher.after)
        self.project = nn.Identity() if sizes[0] == sizes[1] else nn.Linear(*sizes, bias=False)

    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        ours = self.project(vectors(outputs.student.blocks[self.ours]))
        theirs = vectors(outputs.teacher.blocks[self.theirs])
        return {"ot": self.options.weight * sinkhorn_divergence(ours, theirs, self.options.blur).mean()}


def vectors(features: Tensor) -> Tensor:
    """Maps (B, C, H, W) as one vector a place, (B, H·W, C); tokens (B, N, C) as they are. Float32."""
    return as_maps(features).flatten(2).transpose(1, 2)
