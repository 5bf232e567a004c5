"""Whether an imported network does anything on these data, and if not, why."""

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

LEAST = 0.05  # of the way from chance to perfection
SIGMAS = 3.0  # that luck is allowed
LOOKED_AT = 1000  # images; enough to see what is wrong
CONVINCING = 0.5  # share of them that must be right for something to be named as the reason


def chance(labels: NDArray[np.int64], classes: int) -> float:
    """The share of right answers that needs no network: of the largest class."""
    return float(np.bincount(labels, minlength=classes).max() / len(labels))


def needed(labels: NDArray[np.int64], classes: int) -> float:
    """The share of right answers from which a network counts as working.

    That is a twentieth of the way from chance to perfection, and in any case more than three standard deviations of
    guessing above it: 6 % of 100 classes, 15 % of 10, 57 % of 2 on 500 images. Teachers worth their name are far above,
    networks whose classes are in another order or whose weights are misplaced are below.
    """
    by_luck = chance(labels, classes)
    return by_luck + max(LEAST * (1 - by_luck), SIGMAS * (by_luck * (1 - by_luck) / len(labels)) ** 0.5)


def suspicion(network: Network, store: PreparedData, device: torch.device, workers: int | None = None) -> str:
    """What to look at first, in one line: tried out on validation images."""
    labels = store.labels("val")
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(LOOKED_AT, len(labels))).astype(np.int64))
    data = make_loader(store, "val", device, chosen, workers)
    logits, truth = predict(network, data, LOOKED_AT)
    found = {"with its classes in another order": _renamed(logits, truth, len(store.classes))}
    as_it_is = network.input
    for what, step in _otherwise(network, store):
        network.input = step.to(device)
        logits, _ = predict(network, data, LOOKED_AT)
        found[what] = float((logits.argmax(1) == truth).double().mean())
    network.input = as_it_is
    best = max(found, key=lambda what: found[what])
    if found[best] >= max(CONVINCING, needed(truth.cpu().numpy(), len(store.classes))):
        return f"{best} it would be {100 * found[best]:.1f} %"
    return "check normalisation, class order, channels (RGB or BGR) and image size"


class _Reversed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


def _otherwise(network: Network, store: PreparedData) -> Iterator[tuple[str, nn.Module]]:
    """Other ways to bring the data set's images to the network, and what they are."""
    channels = store.image_shape[0]
    data = Normalisation(mean=store.mean, std=store.std)
    for name, normalisation in USUAL.items():
        if len(normalisation.mean) in (1, channels):
            yield f"with normalisation: {name}", Renormalise(data, normalisation, channels)
    yield "without the setting normalisation", nn.Identity()
    raw = USUAL["none"]
    own = network.normalisation or data
    reversed_ = nn.Sequential(Renormalise(data, raw, channels), _Reversed(), Renormalise(raw, own, channels))
    yield "with channels in reverse order (BGR)", reversed_


def _renamed(logits: Tensor, truth: Tensor, classes: int) -> float:
    """The share of right answers if classes could be renamed at will."""
    from scipy.optimize import linear_sum_assignment

    pairs = (truth * classes + logits.argmax(1)).cpu().numpy()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    rows, columns = linear_sum_assignment(-confusion)
    return float(confusion[rows, columns].sum() / len(truth))
