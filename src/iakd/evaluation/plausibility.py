"""Check whether an imported network works on a data set, and if not, find a likely reason."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd.config import Normalisation
from iakd.config.networks import USUAL
from iakd.data.file_loader import make_loader
from iakd.data.store import PreparedData
from iakd.models import Network
from iakd.models.normalisation import Renormalise
from iakd.training.validation import predict

MIN_GAIN = 0.05  # of the way from chance to 100 %
SIGMAS = 3.0  # standard deviations above chance
TRIED_IMAGES = 1000  # enough to see what is wrong
CONVINCING = 0.5  # accuracy with a change for it to be named as the likely reason


def chance_accuracy(labels: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy, 0–1, of always predicting the largest class."""
    return float(np.bincount(labels, minlength=classes).max() / len(labels))


def required_accuracy(labels: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy, 0–1, that a working network must reach.

    It is a twentieth of the way from chance to 100 %, and at least three standard deviations above chance: 6 % for
    100 classes, 15 % for 10, 57 % for 2 on 500 images. Useful teachers are far above; networks with another order of
    classes or with misplaced weights are below.
    """
    chance = chance_accuracy(labels, classes)
    return chance + max(MIN_GAIN * (1 - chance), SIGMAS * (chance * (1 - chance) / len(labels)) ** 0.5)


def likely_cause(network: Network, store: PreparedData, device: torch.device, workers: int | None = None) -> str:
    """Return what to check first, in one line, from trying changes of the input on validation images."""
    labels = store.labels("val")
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(TRIED_IMAGES, len(labels))).astype(np.int64))
    data = make_loader(store, "val", device, chosen, workers)
    logits, truth = predict(network, data, TRIED_IMAGES)
    accuracy = {"with its classes in another order": _best_order(logits, truth, len(store.classes))}
    original = network.input
    for change, step in _input_changes(network, store):
        network.input = step.to(device)
        logits, _ = predict(network, data, TRIED_IMAGES)
        accuracy[change] = float((logits.argmax(1) == truth).double().mean())
    network.input = original
    best = max(accuracy, key=lambda change: accuracy[change])
    if accuracy[best] >= max(CONVINCING, required_accuracy(truth.cpu().numpy(), len(store.classes))):
        return f"{best} it would be {100 * accuracy[best]:.1f} %"
    return "check normalisation, class order, channels (RGB or BGR) and image size"


class _ReverseChannels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


def _input_changes(network: Network, store: PreparedData) -> Iterator[tuple[str, nn.Module]]:
    """Yield other ways to prepare the data set's images for the network, with a description."""
    channels = store.image_shape[0]
    data = Normalisation(mean=store.mean, std=store.std)
    for name, normalisation in USUAL.items():
        if len(normalisation.mean) in (1, channels):
            yield f"with normalisation: {name}", Renormalise(data, normalisation, channels)
    yield "without the setting normalisation", nn.Identity()
    raw = USUAL["none"]
    own = network.normalisation or data
    bgr = nn.Sequential(Renormalise(data, raw, channels), _ReverseChannels(), Renormalise(raw, own, channels))
    yield "with channels in reverse order (BGR)", bgr


def _best_order(logits: Tensor, truth: Tensor, classes: int) -> float:
    """Return the accuracy, 0–1, with the best assignment of outputs to classes."""
    from scipy.optimize import linear_sum_assignment

    pairs = (truth * classes + logits.argmax(1)).cpu().numpy()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    rows, columns = linear_sum_assignment(-confusion)
    return float(confusion[rows, columns].sum() / len(truth))
