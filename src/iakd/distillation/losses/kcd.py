"""Knowledge condensation distillation (Li et al. 2022), as version v3 of the authors' code does it.

Images are ranked by the entropy of the student's outputs over the training so far. Those at the end are dropped, and
mixed into the lowest-ranked that stay. The loss is that of the other parts of the sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.config import Augment
from iakd.config.method_options import KcdOptions
from iakd.data.loader import EpochData, EpochSubset
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext


class KCDLoss(DistillationLoss):
    """Chooses the images of each epoch; adds no loss.

    What it knows of the images are buffers, which change in steps (what was seen) and at the beginning of every
    `every`-th epoch (the ranking): a resumed training is the same.
    """

    ce_weight = 0.0  # that of the other parts counts
    cross_sample = True
    entropies: Tensor  # (N,) sums of what each image's outputs had, in nats
    counts: Tensor  # (N,) how often it was shown
    ranking: Tensor  # (N,) positions of the images, the one to keep first
    partners: Tensor  # (N,) what is mixed into each image
    weights: Tensor  # (N,) of the image itself in the mixture; 1: not mixed
    rankings: Tensor  # how many there were

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.options: KcdOptions = context.options
        n = len(context.data)
        self.register_buffer("entropies", torch.zeros(n))
        self.register_buffer("counts", torch.zeros(n))
        for name in ("ranking", "partners"):
            self.register_buffer(name, torch.arange(n))
        self.register_buffer("weights", torch.ones(n))
        self.register_buffer("rankings", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def images_per_epoch(options: KcdOptions, n: int, epoch: int) -> int:
        """All in the first `every` epochs, then `drop`·n fewer each time, but never fewer than `keep`·n, or two."""
        left = n - epoch // options.every * round(options.drop * n)
        return max(left, round(options.keep * n), min(n, 2))

    def epoch_data(self, epoch: int, augment: Augment) -> EpochData:
        due = epoch // self.options.every
        if due == 0:
            return EpochData()
        if int(self.rankings) < due:
            self._rank(epoch)
            self.rankings.fill_(due)
        kept = self.ranking[: self.images_per_epoch(self.options, len(self.ranking), epoch)]
        return EpochData(EpochSubset(kept.cpu(), self.partners[kept].cpu(), self.weights[kept].cpu()))

    def _rank(self, epoch: int) -> None:
        options, n = self.options, len(self.ranking)
        self.ranking.copy_(rank(self.entropies, self.counts, options.every, options.exponent))
        now, before = (self.images_per_epoch(options, n, at) for at in (epoch, epoch - options.every))
        dropped = self.ranking[now:before][:now]
        mixed = self.ranking[now - len(dropped) : now]
        self.partners[mixed] = dropped
        self.weights[mixed] = mixing_weights(len(dropped), options.mixed).to(self.weights.device)

    @torch.no_grad()
    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.logits is not None
        images = outputs.batch.indices
        self.entropies[images] = self.entropies[images] + entropy(outputs.student.logits)
        self.counts[images] = self.counts[images] + 1
        return {}


def entropy(logits: Tensor) -> Tensor:
    """-Σ_k p_k·log p_k in nats of the outputs of each image: (B,) float32 from logits (B, classes)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def rank(entropies: Tensor, counts: Tensor, every: int, exponent: float) -> Tensor:
    """Positions of the images in descending order of (mean entropy)·(count/every)^exponent, (N,).

    An image that was never shown comes first: nothing speaks against it.
    """
    score = entropies / counts * (counts / every) ** exponent
    return torch.where(counts > 0, score, torch.inf).argsort(descending=True, stable=True)


def mixing_weights(n: int, last: float) -> Tensor:
    """last + (1 - last)·(n - i)/n for i = 0 … n - 1: from 1 downwards, float32 (n,)."""
    places = torch.arange(n, dtype=torch.float64)
    return (last + (1 - last) * (n - places) / max(n, 1)).float()
