"""The augmentation of one epoch."""

import torch
from torch import Tensor

from iakd.data.augmentation.views import crop, mirror, number
from iakd.data.draws import generator, moved
from iakd.params import Augment


class Augmenter:
    """What is drawn for each of the `n` positions of an epoch, and its application to batches.

    Each kind of augmentation has a stream of its own, (`stream`, kind, seed, epoch), drawn for the whole epoch on the
    CPU. So a batch depends on its positions alone, not on the batches before it or on the device, and one kind does
    not disturb the draws of another.
    """

    def __init__(
        self, augment: Augment, n: int, seed: int, epoch: int, device: torch.device, stream: str = "augment"
    ) -> None:
        self.augment = augment
        draws = generator(stream, seed, epoch)
        flips = torch.randint(2, (n,), generator=draws)
        corners = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        self._flips, self._corners = moved(flips, device), moved(corners, device)
        # (n,) on the CPU: which view of its image a position shows, where there are finitely many
        self.views = None if augment.views is None else number(augment, flips, corners)

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Images uint8 (B, C, H, W) at the positions `part` (B of them), changed; the shape stays."""
        if self.augment.pad:
            images = crop(images, self.augment.pad, self._corners[:, part])
        if self.augment.flip:
            images = mirror(images, self._flips[part])
        return images
