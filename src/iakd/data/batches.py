"""Batches of a data set that lives on the device: no worker processes, no copies, no waiting for the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from iakd.data.streams import derive as derive  # the seeds of these and all other streams
from iakd.params import Augment


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` float32 (B, C, H, W), normalised; `labels` int64 (B,); `indices` int64 (B,), positions in the set."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Resident:
    """A set of images held on the device as uint8, and its batches.

    `images` uint8 (N, C, H, W), `labels` int64 (N,); `mean` and `std` per channel in 0–1 units, by which batches
    are normalised.
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
        self.images = torch.from_numpy(np.array(images)).to(
            self.device
        )  # a copy: memory-mapped arrays are read-only
        self.labels = torch.from_numpy(np.array(labels)).to(self.device)
        m, s = (torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self._scale = (1 / (255 * s)).to(
            self.device, torch.float32
        )  # (v/255 - m)/s as one multiplication and addition
        self._shift = (-m / s).to(self.device, torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch. The last may be short, but a single leftover image is left out: BatchNorm cannot
        normalise one image."""
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
        depends on (seed, epoch, batch_size) and its position alone: not on `start`, the device or what went before.
        """
        n = len(self)
        order = self._moved(torch.randperm(n, generator=_generator("order", seed, epoch)))
        draws = _generator("augment", seed, epoch)
        flips = torch.rand(n, generator=draws) < 0.5
        shifts = torch.randint(2 * augment.pad + 1, (2, n), generator=draws)
        flips, shifts = (
            (self._moved(flips) if augment.flip else flips),
            (self._moved(shifts) if augment.pad else shifts),
        )
        for step in range(start, self.steps(batch_size)):
            part = slice(step * batch_size, (step + 1) * batch_size)
            indices = order[part]
            images = self.images[indices]
            if augment.pad:
                images = _crop(images, augment.pad, shifts[:, part])
            if augment.flip:
                images = torch.where(flips[part].view(-1, 1, 1, 1), images.flip(-1), images)
            yield Batch(self._normalised(images, channels_last), self.labels[indices], indices)

    def plain(self, batch_size: int, channels_last: bool = False) -> Iterator[Batch]:
        """All images in their order, normalised; the last batch may be short."""
        indices = torch.arange(len(self), device=self.device)
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield Batch(self._normalised(self.images[part], channels_last), self.labels[part], indices[part])

    def _normalised(self, images: Tensor, channels_last: bool) -> Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.addcmul(self._shift, images.to(torch.float32, memory_format=layout), self._scale)

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for what the device is still doing."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    """Crops of the old size from images (B, C, H, W) with `pad` zeros around them; (B,) top, left = `corners`."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, corners[0], corners[1]]


def _generator(*parts: Any) -> torch.Generator:
    return torch.Generator().manual_seed(derive(*parts))
