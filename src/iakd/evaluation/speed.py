"""How fast a network classifies. The only numbers of an evaluation that differ from run to run."""

import statistics
import time

import torch
from torch import Tensor, nn

WARM_UP = 3  # runs that are not timed: memory is allocated and kernels are chosen in them
BATCHES = 3  # timed runs of a whole batch


@torch.no_grad()
def speed(network: nn.Module, images: Tensor, latency_runs: int) -> dict[str, float]:
    """`latency_ms` of one image, the median over `latency_runs`, and `images_per_s` of all `images` as one batch.

    `images` (B, C, H, W), normalised, on the network's device. In evaluation mode; the mode is put back.
    """
    training = network.training
    network.eval()
    one = _seconds(network, images[:1], latency_runs)
    batch = _seconds(network, images, BATCHES)
    network.train(training)
    return {"latency_ms": 1000.0 * one, "images_per_s": len(images) / batch}


def _seconds(network: nn.Module, images: Tensor, runs: int) -> float:
    """Median seconds of a forward pass."""
    seconds = []
    for _ in range(WARM_UP):
        network(images)
    for _ in range(runs):
        _wait(images.device)
        start = time.perf_counter()
        network(images)
        _wait(images.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that the clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
