"""What the bits of a network's outputs depend on, as one hash."""

import platform
from pathlib import Path
from typing import Any

import torch

from iakd.files import digest, sha256_bytes
from iakd.models import Network
from iakd.provenance import source_sha


def identity(network: Network, images: torch.Tensor, **more: Any) -> str:
    """Of outputs of `network` for batches like `images`, computed here and now: weights, sources, precision, machine.

    `more`: JSON values that they depend on besides.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]  # also those that state_dict leaves out
    return digest(
        {
            "network": repr(network),
            "weights": {name: _sha256(tensor) for name, tensor in tensors},
            "source": [source_sha("iakd.models"), source_sha("iakd.data.batches")],
            "images": [*images.shape[1:], *images.stride()],
            "precision": _precision(images.device.type),
            "compiled": any(module._compiled_call_impl is not None for module in network.modules()),
            "machine": _machine(images.device),
            **more,
        }
    )


def _sha256(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().flatten()
    return sha256_bytes(plain.view(torch.uint8).numpy().tobytes()) + str(tuple(tensor.stride()))


def _precision(device: str) -> str:
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "fp32"


def _machine(device: torch.device) -> list[Any]:
    """Libraries, and the processor with the instructions that it has or the GPU: they decide how sums are split up."""
    if device.type == "cuda":
        return [
            torch.__version__,
            torch.version.cuda,
            torch.backends.cudnn.version(),
            torch.cuda.get_device_name(device),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        ]
    return [torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), *_processor()]


def _processor() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part", "cache size")
    return sorted({line for line in lines if line.startswith(wanted)})
