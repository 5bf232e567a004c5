"""Knowledge condensation: images that teach the student little are dropped step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from iakd.config import Augment
from iakd.config.method_options import KcdOptions
from iakd.data.loader import EpochData, EpochSubset
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext


class KCDLoss(DistillationLoss):
    """Chooses the images of each epoch; the loss is that of the other methods of the sum.

    Images are ranked by (mean entropy of the student's outputs)·(times shown/every)^exponent over the training so far.
    The lowest-ranked are dropped, and mixed into the lowest-ranked of the others.
    Li et al., Knowledge Condensation Distillation, ECCV 2022, as in version v3 of the authors' code.

    Everything it remembers is in buffers, which change with the steps (entropies, counts) and at the start of every
    `every`-th epoch (the ranking). So a resumed training gives the same result.
    """

    ce_weight = 0.0  # the other losses decide
    cross_sample = True
    entropies: Tensor  # (N,) of each image's outputs in nats, summed over the times it was shown
    counts: Tensor  # (N,) how often each image was shown
    ranking: Tensor  # (N,) positions of the images, the most useful first
    partners: Tensor  # (N,) position of the image that is mixed into each image
    weights: Tensor  # (N,) weight of the image itself in the mixture; 1: not mixed
    rankings: Tensor  # number of rankings so far

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
        """Return n for the first `every` epochs, then `drop`·n fewer each time, but at least `keep`·n and 2."""
        remaining = n - epoch // options.every * round(options.drop * n)
        return max(remaining, round(options.keep * n), min(n, 2))

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
        kept, before = (self.images_per_epoch(options, n, at) for at in (epoch, epoch - options.every))
        dropped = self.ranking[kept:before][:kept]
        mixed = self.ranking[kept - len(dropped) : kept]
        self.partners[mixed] = dropped
        self.weights[mixed] = mixing_weights(len(dropped), options.mixed).to(self.weights.device)

    @torch.no_grad()
    def forward(self, outputs: ForwardOutputs) -> dict[str, Tensor]:
        assert outputs.student.logits is not None
        images = outputs.batch.indices
        shown = entropy(outputs.student.logits)
        self.entropies.index_add_(0, images, shown)  # a balanced sampler may show an image twice in a batch
        self.counts.index_add_(0, images, torch.ones_like(shown, dtype=self.counts.dtype))
        return {}


def entropy(logits: Tensor) -> Tensor:
    """Return −Σ_k p_k·log p_k in nats of the outputs of each image, float32 (B,), from logits (B, classes)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def rank(entropies: Tensor, counts: Tensor, every: int, exponent: float) -> Tensor:
    """Return the positions (N,) of the images in descending order of (mean entropy)·(count/every)^exponent.

    Images that were never shown come first, as their entropy is unknown.
    """
    score = entropies / counts * (counts / every) ** exponent
    return torch.where(counts > 0, score, torch.inf).argsort(descending=True, stable=True)


def mixing_weights(n: int, last: float) -> Tensor:
    """Return last + (1 − last)·(n − i)/n for i = 0 … n − 1, decreasing from 1; float32 (n,)."""
    ranks = torch.arange(n, dtype=torch.float64)
    return (last + (1 - last) * (n - ranks) / max(n, 1)).float()
