"""Drawing on the CPU, where the same seed gives the same numbers on every machine, for use on the device."""

import torch
from torch import Tensor

from iakd.data.streams import derive


def generator(*parts: str | int) -> torch.Generator:
    """A generator of the CPU for the stream of this name; see `derive`."""
    return torch.Generator().manual_seed(derive(*parts))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device, without waiting for what the device is still doing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
