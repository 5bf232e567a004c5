"""What an epoch shows: which images, mixed or not, and in which views."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """The images that an epoch is made of, where these are not simply all; on the CPU.

    `indices` int64 (n,) into the set. What is shown of each is `weights` float32 (n,) of it and the rest of the image
    at `partners` int64 (n,), rounded to whole levels: where the weight is 1, the image as it is.
    """

    indices: Tensor
    partners: Tensor
    weights: Tensor

    def at(self, order: Tensor) -> "Choice":
        """The images at the positions `order`."""
        return Choice(self.indices[order], self.partners[order], self.weights[order])


@dataclass(frozen=True, eq=False)
class Shown:
    """An epoch, position by position, known before its first batch is made; on the CPU.

    `indices` int64 (n,) into the set; `views` int64 (n,): the number of the view (`Augment.views`), -1 where the image
    is mixed with another, None where views have no numbers. All batches but the last have `batch_size` images.
    """

    indices: Tensor
    views: Tensor | None
    batch_size: int


def blended(images: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """weights·images + (1 - weights)·partners, rounded; uint8 (B, C, H, W), `weights` float32 (B,)."""
    own = weights.view(-1, 1, 1, 1)
    return (own * images + (1 - own) * partners).round_().to(torch.uint8)
