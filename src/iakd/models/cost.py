"""What one image costs a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def cost(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """`parameters` (how many numbers they hold) and `macs` (multiply–accumulate operations on one image).

    `shape` is (channels, height, width). Counted are convolutions and matrix products, as is usual in the field;
    normalisation, activations and additions are not. The network's mode is put back.
    """
    first = next(network.parameters())
    training = network.training
    network.eval()
    counter = FlopCounterMode(display=False)  # two floating-point operations per multiply–accumulate
    with torch.no_grad(), counter:
        network(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    network.train(training)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": counter.get_total_flops() // 2,
    }
