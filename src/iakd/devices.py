"""The device of a training, and the switches that make results reproducible on it."""

import ctypes
import os
from typing import get_args

import torch
from torch import Tensor, nn

from iakd.config import Compute, Device
from iakd.errors import UserError
from iakd.processes import rank_and_world_size

# Parameters of glibc's mallopt: how much free memory is kept, how much the heap grows, what gets a mapping of its own
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MIB = 1 << 20


def set_up_device(compute: Compute) -> torch.device:
    """Choose the device and set threads and determinism for this process.

    Each of several processes that train together takes a GPU of its own. Raises UserError if a GPU is required and
    missing.
    """
    device = choose_device(compute.device, "compute.device")
    torch.set_num_threads(compute.threads)
    if device.type == "cpu":
        keep_freed_memory()
        return device
    if rank_and_world_size()[1] > 1:
        index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"this machine has {count} GPUs, too few for one per process; use fewer processes")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a launch each time
    return device


def choose_device(wanted: Device, name: str = "device") -> torch.device:
    """Return the GPU if there is one and it is `wanted`, or else the CPU.

    Raises UserError, with the `name` of what says so, if a GPU is required and missing, or for another kind of device.
    """
    if wanted not in get_args(Device):
        raise UserError(f"{name} {wanted!r}: unknown; known: {', '.join(get_args(Device))}")
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(f"{name} is cuda, but torch sees no GPU; set it to auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees; without glibc, do nothing.

    A step frees all its activations. By default glibc returns that memory to the system, so the next step has to get
    it back page by page, filled with zeros.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 256 * MIB)
        mallopt(M_TRIM_THRESHOLD, 2047 * MIB)
        mallopt(M_TOP_PAD, 64 * MIB)


def device_name(device: torch.device) -> str:
    """The device's name for a run's record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def use_channels_last(compute: Compute, device: torch.device, module: nn.Module) -> bool:
    """Whether images and weights lie in memory channel by channel for each pixel (docs/performance.md).

    By default, because it was measured to be faster on a CPU and on a GPU, in both precisions. Never where torch
    cannot be trusted with it.
    """
    return bool(compute.channels_last) and not (device.type == "cpu" and _overruns(module))


def _overruns(module: nn.Module) -> bool:
    """Whether a layer of `module` would write beyond its buffer: oneDNN (in torch 2.13, with AVX-512) does so in the
    backward pass of a strided 1×1 convolution of fewer than 16 channels, in this layout only."""
    return any(
        layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels // layer.groups < 16
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    )


def set_memory_format(module: nn.Module, channels_last: bool) -> None:
    """Bring the weights into this memory layout, in place."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module.to(memory_format=layout)  # type: ignore[call-overload]  # torch's annotations leave it out


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device, without waiting for what the device is still doing."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
