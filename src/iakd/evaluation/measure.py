"""How fast a network classifies. The only numbers of an evaluation that differ from run to run."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from iakd import devices as devices
from iakd import models
from iakd.config import Normalisation, Params
from iakd.data.file_loader import make_loader
from iakd.data.store import PreparedData
from iakd.evaluation import metrics
from iakd.models import Network
from iakd.models.flops import model_cost
from iakd.models.normalisation import adapt_input
from iakd.training.validation import predict

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


def measure(
    params: Params,
    model: Network,
    normalisation: Normalisation | None,
    content: bytes,
    origin: str,
    store: PreparedData,
) -> dict[str, Any]:
    """Accuracy, calibration, cost and speed of `model` with the weights `content` on the test split, and the device
    they were measured on. `normalisation` is that of the images that these weights know; None: the data set's.
    Bit-identical from run to run on the CPU, but for the two speeds.

    Raises UserError, naming `origin`, where the weights do not fit.
    """
    device = devices.set_up_device(params.compute)
    models.load_weights(model, content, origin)
    adapt_input(model, normalisation, store.mean, store.std)
    model.to(device)
    test = make_loader(store, "test", device, workers=params.compute.workers)
    batch_size = params.evaluate.batch_size
    logits, labels = predict(model, test, batch_size)
    return {
        **metrics.measure(logits.cpu().numpy(), labels.cpu().numpy()),
        **model_cost(model, store.image_shape),
        **speed(model, next(test.plain(batch_size)).images, params.evaluate.latency_runs),
        "device": devices.device_name(device),
    }
