"""Batches of a data set that lives on the device: no worker processes, no waiting for the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from iakd.data.streams import derive as derive  # the seeds of these and all other streams
from iakd.params import Augment


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` float32 (B, C, H, W), normalised; `labels` int64 (B,); `indices` int64 (B,) into the set."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Resident:
    """A set of images held on the device as uint8, and its batches.

    `images` uint8 (N, C, H, W), `labels` int64 (N,); `mean` and `std` per channel in 0–1 units, by which
    batches are normalised.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.images = torch.from_numpy(np.array(images)).to(self.device)  # a copy: memory-mapped arrays are read-only
        self.labels = torch.from_numpy(np.array(labels)).to(self.device)
        m, s = (torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self._scale = (1 / (255 * s)).to(self.device, torch.float32)  # (v/255 - m)/s as one multiplication and addition
        self._shift = (-m / s).to(self.device, torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch. The last may be short, but a single leftover image is left out.

        BatchNorm cannot normalise one image.
        """
        full, rest = divmod(len(self), batch_size)
        return full + (rest > 1)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        augment: Augment,
        start: int = 0,
        channels_last: bool = False,
    ) -> Iterator[Batch]:
        """Training batches `start`, `start` + 1, … of an epoch: shuffled, augmented, normalised.

        Order and augmentation are streams of their own, drawn for the whole epoch on the CPU, so that a batch
        depends on (seed, epoch, batch_size) and its position alone: not on `start`, the device or the past.
        """
        n = len(self)
        order = self._moved(torch.randperm(n, generator=_generator("order", seed, epoch)))
        draws = _generator("augment", seed, epoch)
        flips = torch.randint(2, (n,), generator=draws)
        shifts = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        flips, shifts = self._moved(flips), self._moved(shifts)
        for step in range(start, self.steps(batch_size)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            indices = order[part]
            images = self.images.index_select(0, indices)
            if augment.pad:
                images = _crop(images, augment.pad, shifts[:, part])
            if augment.flip:
                images = _mirror(images, flips[part])
            yield Batch(self._normalised(images, channels_last), self.labels.index_select(0, indices), indices)

    def plain(self, batch_size: int, channels_last: bool = False) -> Iterator[Batch]:
        """All images in their order, normalised; the last batch may be short."""
        indices = torch.arange(len(self), device=self.device)
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield Batch(self._normalised(self.images[part], channels_last), self.labels[part], indices[part])

    def _normalised(self, images: Tensor, channels_last: bool) -> Tensor:
        images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for what the device is still doing."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    """Crops of the old size from images (B, C, H, W) with `pad` zeros around; `corners` (2, B): top, left."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, corners[0], corners[1]]


def _mirror(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), mirrored left to right where `flips` (B,) is 1 and not 0."""
    both = torch.cat((images, images.flip(-1)))  # picking from both is far quicker than torch.where
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(*parts))
