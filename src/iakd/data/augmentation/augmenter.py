"""The augmentation of one epoch."""

import torch
from torch import Tensor

from iakd.data.augmentation.erasing import blank, cutout_boxes, erasing_boxes
from iakd.data.augmentation.mixing import Mixing
from iakd.data.augmentation.policy import Policy
from iakd.data.augmentation.views import number, shifted
from iakd.data.draws import generator, moved
from iakd.params import Augment


class Augmenter:
    """What is drawn for each of the `n` positions of an epoch, and its application to batches of images of `size`.

    Each kind of augmentation has a stream of its own, (`stream`, kind, seed, epoch), drawn for the whole epoch on the
    CPU. So a batch depends on its positions alone, not on the batches before it or on the device, and one kind does
    not disturb the draws of another. `size` is (height, width).
    """

    def __init__(
        self,
        augment: Augment,
        size: tuple[int, int],
        n: int,
        seed: int,
        epoch: int,
        device: torch.device,
        stream: str = "augment",
    ) -> None:
        self.augment = augment
        draws = generator(stream, seed, epoch)
        flips = torch.randint(2, (n,), generator=draws)
        corners = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        self._flips, self._corners = moved(flips, device), moved(corners, device)
        # (n,) on the CPU: which view of its image a position shows, where there are finitely many
        self.views = None if augment.views is None else number(augment, flips, corners)

        def of(kind: str) -> torch.Generator:
            return generator(stream, kind, seed, epoch)

        self._policy = None if augment.policy == "none" else Policy(augment, size, n, of("policy"), device)
        boxes = [cutout_boxes(augment.cutout, size, n, of("cutout"))] if augment.cutout else []
        boxes += [erasing_boxes(augment.erase, size, n, of("erase"))] if augment.erase else []
        self._boxes = [moved(some, device) for some in boxes]
        self._mixing = Mixing(augment, size, n, of("mix")) if augment.mixes else None

    def apply(self, images: Tensor, part: slice) -> Tensor:
        """Images uint8 (B, C, H, W) at the positions `part` (B of them): cropped, mirrored, changed by the policy.

        Every image for itself: in batches of another size it comes out the same.
        """
        images = shifted(images, self.augment, self._flips[part], self._corners[:, part])
        return self._policy.apply(images, part) if self._policy else images

    def finish(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What is done to normalised images float32 (B, C, H, W) of a batch, in place: erasing, then mixing.

        Gives the images; labels (B,) of the images mixed in, and weight (B,) of the own label, or None twice.
        """
        for boxes in self._boxes:
            images = blank(images, boxes[part])
        return self._mixing.apply(images, labels, part) if self._mixing else (images, None, None)
