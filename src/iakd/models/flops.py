"""Parameters and multiply–accumulate operations of a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iakd.models.external.black_box import Program
from iakd.models.network import Network
from iakd.models.quantisation import QuantisedConv2d, QuantisedLinear, parameters_in_use, quantised_layers, weight_bytes
from iakd.models.shapes import Shape, call_on_meta


def model_cost(network: nn.Module, shape: Shape) -> dict[str, int]:
    """Return `parameters` (their number), `weight_bytes` (their size) and `macs` (multiply–accumulates for one image).

    `shape` is (channels, height, width). As is usual, convolutions and matrix products are counted; normalisation,
    activations and additions are not. What a black box computes by other means than torch is not seen: 0, then, means
    unknown. The network's mode is restored.
    """
    programs = [module for module in network.modules() if isinstance(module, Program)]
    batch = max((program.batch for program in programs), default=1)
    images = torch.zeros(batch, *shape)
    for first in islice(network.parameters(), 1):
        images = images.to(first.device, first.dtype)
    training = network.training
    network.eval()
    with torch.no_grad(), _counter() as counter:
        network(images)
    network.train(training)
    in_files, unseen = (sum(both) for both in zip((0, 0), *(each.cost(shape) for each in programs), strict=True))
    return {
        "parameters": _parameters(network) + in_files,
        "weight_bytes": weight_bytes(network) + 4 * in_files,
        "macs": counter.get_total_flops() // 2 // batch + unseen,
    }


def block_costs(network: Network, shape: Shape) -> list[dict[str, int]]:
    """Return `parameters` and `macs` of each block, in order; nothing is computed."""
    macs = call_on_meta(_BlockMacs(network), torch.empty(2, *shape, device="meta"))
    return [
        {"parameters": _parameters(block), "macs": number // 2}
        for block, number in zip(network.blocks, macs, strict=True)
    ]


class _BlockMacs(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[int]:
        macs = []
        with torch.no_grad():
            features = self.network.stem(images)
            for block in self.network.blocks:
                with _counter() as counter:
                    features = block(features)
                macs.append(counter.get_total_flops() // 2)
        return macs


def bit_operations(network: nn.Module, shape: Shape) -> int:
    """Return Σ MACs·bits² over the quantised layers, for one image: bits of the weight times bits of the input.

    Multiplications of single bits, by which networks of different bit-widths are compared (as in AdaBits). Nothing else
    is counted. The network's mode is restored.
    """
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, QuantisedConv2d | QuantisedLinear)
        counts.append(output.numel() * layer.weight[0].numel() * layer.quantiser.in_use.bits**2)

    handles = [layer.register_forward_hook(count) for layer in quantised_layers(network)]
    first, training = next(network.parameters()), network.training
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return sum(counts)


def step_macs(compute_loss: Callable[[], Tensor]) -> int:
    """Return the multiply–accumulates of a loss and of its gradient."""
    with _counter() as counter:
        compute_loss().backward()
    return counter.get_total_flops() // 2


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """Count floating-point operations, two per multiply–accumulate."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot look inside fused attention
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in parameters_in_use(module))
