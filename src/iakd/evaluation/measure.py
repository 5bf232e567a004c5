"""Evaluate a network on the test split. Its speed is the only result that differs from run to run."""

import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iakd import devices, models
from iakd.config import Normalisation, Params
from iakd.data.file_loader import make_loader
from iakd.data.loader import ImageLoader
from iakd.data.store import PreparedData
from iakd.evaluation.metrics import classification_metrics
from iakd.models import Network
from iakd.models.flops import bit_operations, model_cost
from iakd.models.normalisation import adapt_input
from iakd.models.quantisation import each_bits
from iakd.training.validation import predict

WARM_UP_RUNS = 3  # not timed: memory is allocated and kernels are selected
BATCH_RUNS = 3  # timed, of a whole batch
LONG_SECONDS = 1.0  # a forward pass that takes longer is warmed up and timed once
PEER = ("top1", "top5", "nll", "ece")  # what is told of a second network
BY_BITS = ("top1", "top5", "nll", "ece", "weight_bytes")  # what is told of each of several bit-widths


@torch.no_grad()
def measure_speed(network: nn.Module, images: Tensor, latency_runs: int) -> dict[str, float]:
    """Return `latency_ms` of one image, the median over `latency_runs`, and `images_per_s` of `images` as one batch.

    `images` (B, C, H, W), normalised, on the network's device. Measured in evaluation mode; the mode is restored.
    """
    training = network.training
    network.eval()
    latency = _median_seconds(network, images[:1], latency_runs)
    batch = _median_seconds(network, images, BATCH_RUNS)
    network.train(training)
    return {"latency_ms": 1000.0 * latency, "images_per_s": len(images) / batch}


def _median_seconds(network: nn.Module, images: Tensor, runs: int) -> float:
    """Return the median duration of a forward pass."""
    network(images)
    seconds = _seconds(network, images)
    if seconds > LONG_SECONDS:
        return seconds
    for _ in range(WARM_UP_RUNS - 2):
        network(images)
    return statistics.median(_seconds(network, images) for _ in range(runs))


def _seconds(network: nn.Module, images: Tensor) -> float:
    _synchronize(images.device)
    start = time.perf_counter()
    network(images)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work, so that the clock includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluate_model(
    params: Params,
    model: Network,
    normalisation: Normalisation | None,
    content: bytes,
    weights_name: str,
    store: PreparedData,
) -> dict[str, Any]:
    """Load the weights `content` and return accuracy, calibration, cost and speed on the test split, and the device.

    `normalisation` is that of the images that the weights were trained on; None: the data set's. Bit-identical from
    run to run on the CPU, except for the two speeds. A model of several bit-widths is measured at the highest one;
    `bit_widths` has accuracy, size and `bit_operations` at each. Raises UserError, naming `weights_name`, if the
    weights do not fit the model.
    """
    test = load_for_test(params, model, normalisation, content, weights_name, store)
    batch_size = params.evaluate.batch_size
    results: dict[str, Any] = {}
    by_bits: dict[str, dict[str, Any]] = {}
    for bits in each_bits(model):
        found = {**_accuracy(model, test, batch_size), **model_cost(model, store.image_shape)}
        results = results or found  # the highest bit-width comes first
        if bits:
            operations = bit_operations(model, store.image_shape)
            by_bits[str(bits)] = {**{name: found[name] for name in BY_BITS}, "bit_operations": operations}
    return {
        **results,
        "majority_top1": _majority_top1(store),
        **({"bit_widths": by_bits} if by_bits else {}),
        **measure_speed(model, next(test.plain(batch_size)).images, params.evaluate.latency_runs),
        "device": devices.device_name(test.device),
    }


def _majority_top1(store: PreparedData) -> float:
    """Return the test accuracy, percent, of always answering the most frequent class of the training images."""
    majority = np.bincount(store.labels("train")).argmax()
    return 100.0 * float((store.labels("test") == majority).mean())


def evaluate_peer(params: Params, model: Network, test: ImageLoader) -> dict[str, float]:
    """Return the accuracy of a loaded network that was trained beside a student."""
    accuracy = _accuracy(model, test, params.evaluate.batch_size)
    return {name: accuracy[name] for name in PEER}


def load_for_test(
    params: Params,
    model: Network,
    normalisation: Normalisation | None,
    content: bytes,
    weights_name: str,
    store: PreparedData,
) -> ImageLoader:
    """Load the weights, move the model to the device, and return the test split there; as in `evaluate_model`."""
    device = devices.set_up_device(params.compute)
    models.load_weights(model, content, weights_name)
    adapt_input(model, normalisation, store.mean, store.std)
    model.to(device)
    return make_loader(store, "test", device, workers=params.compute.workers)


def _accuracy(model: Network, test: ImageLoader, batch_size: int) -> dict[str, Any]:
    logits, labels = predict(model, test, batch_size)
    return classification_metrics(logits.cpu().numpy(), labels.cpu().numpy())
