"""The teacher's logits and pooled features, always computed in batches of one size.

A sum over many products may be split up differently in a batch of another size (oneDNN does so below 16 images, cuBLAS
more often), which changes its last bits. In batches of one size an image's outputs are the same at every position and
in any company; so they can be computed once and used again.
"""

import torch
from torch import Tensor

from iakd.data.batches import Batch
from iakd.models import Network
from iakd.models.walk import Features, Needs, walk

KINDS = ("logits", "pooled")


def suffice(needs: Needs) -> bool:
    """Whether what is looked at are outputs, and nothing inside the network."""
    return needs != Needs() and needs == Needs(logits=needs.logits, pooled=needs.pooled)


def features_of(values: dict[str, Tensor]) -> Features:
    """Outputs by kind as what a walk gives."""
    return Features(logits=values.get("logits"), pooled=values.get("pooled"))


class Outputs:
    """Computes what `needs` names, of logits and pooled features, for training batches of up to `batch_size` images."""

    def __init__(self, teacher: Network, needs: Needs, batch_size: int) -> None:
        self.teacher = teacher
        self.needs = needs
        self.batch_size = batch_size
        self.kinds = [kind for kind in KINDS if getattr(needs, kind)]

    def __call__(self, batch: Batch) -> Features:
        """Of each image of the batch."""
        return features_of(self.compute(batch.images))

    def finish(self) -> None:
        """The training has ended."""

    @torch.no_grad()
    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """By kind, (B, …) for images (B, C, H, W) of the layout and in the precision of the training."""
        features = walk(self.teacher, self.filled(images), self.needs)
        return {kind: getattr(features, kind)[: len(images)] for kind in self.kinds}

    def filled(self, images: Tensor, more: Tensor | None = None) -> Tensor:
        """A batch of full size, laid out like `images`: these, then `more`, then the first one again and again."""
        if len(images) >= self.batch_size:
            return images
        full = torch.empty_strided(
            (self.batch_size, *images.shape[1:]), images.stride(), dtype=images.dtype, device=images.device
        )
        n = len(images)
        full[:n] = images
        if more is not None:
            full[n : n + len(more)] = more
            n += len(more)
        full[n:] = full[:1]
        return full
