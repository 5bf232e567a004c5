"""From uint8 images to what networks see."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normaliser:
    """(v/255 - mean)/std per channel; `mean` and `std` in 0–1 units."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        m, s = (torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self._scale = (1 / (255 * s)).to(device, torch.float32)  # as one multiplication and one addition
        self._shift = (-m / s).to(device, torch.float32)

    def __call__(self, images: Tensor, channels_last: bool = False) -> Tensor:
        """Images float32 (B, C, H, W), never sharing memory, from uint8 ones of that shape."""
        images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images
