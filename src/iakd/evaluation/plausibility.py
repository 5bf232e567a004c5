"""Check whether an imported network works on a data set, and if not, find a likely reason."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iakd import config
from iakd.config import Normalisation
from iakd.config.networks import USUAL
from iakd.data.file_loader import make_loader
from iakd.data.loader import ImageLoader
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.models import Network
from iakd.models.normalisation import Renormalise
from iakd.models.variants import describe, twins
from iakd.training.validation import predict

MIN_GAIN = 0.05  # of the way from chance to 100 %
SIGMAS = 3.0  # standard deviations above chance
MOST_GAIN = 0.5  # but no more than this part of the way: of a few images, all may be needed for three deviations
TRIED_IMAGES = 1000  # enough to see what is wrong
SCREENED = 100  # enough to see which forms of a network are not worse
CONVINCING = 0.5  # accuracy with a change for it to be named as the likely reason
LEAST_GAIN = 0.02  # accuracy that another form of the network must add for it to be named
GAIN_SIGMAS = 4.0  # its gain in standard deviations, on the same images
SMALL = 64  # pixels, up to which two changes of the form are tried together


class Form(NamedTuple):
    """Another form of a network, by what would have to be set, and its accuracy, 0–1."""

    change: str
    accuracy: float


def chance_accuracy(labels: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy, 0–1, of always predicting the largest class."""
    return float(np.bincount(labels, minlength=classes).max() / len(labels))


def required_accuracy(labels: NDArray[np.int64], classes: int) -> float:
    """Return the accuracy, 0–1, that a working network must reach.

    It is a twentieth of the way from chance to 100 %, and at least three standard deviations above chance, but at most
    half of the way: 6 % for 100 classes, 15 % for 10, 57 % for 2 on 500 images. Useful teachers are far above; networks
    with another order of classes or with misplaced weights are below.
    """
    chance = chance_accuracy(labels, classes)
    return _required(chance, (chance * (1 - chance) / len(labels)) ** 0.5)


def _required(chance: float, deviation: float) -> float:
    return chance + min(max(MIN_GAIN * (1 - chance), SIGMAS * deviation), MOST_GAIN * (1 - chance))


def is_near_chance(top1: float, balanced_accuracy: float, labels: NDArray[np.int64], classes: int) -> bool:
    """Whether these accuracies, 0–1, are hardly better than guessing.

    Where classes differ in size, a useful network may be right less often than one that always names the largest class,
    but then it is right for more of the others.
    """
    counts = np.bincount(labels, minlength=classes)
    counts = counts[counts > 0]
    chance = 1 / len(counts)
    deviation = float((chance * (1 - chance) / counts).sum() ** 0.5 / len(counts))
    return top1 < required_accuracy(labels, classes) and balanced_accuracy < _required(chance, deviation)


def likely_cause(
    network: Network, store: PreparedData, device: torch.device, workers: int | None = None, form: Form | None = None
) -> str:
    """Return what to check first, in one line, from trying changes of the input on validation images.

    `form` is the result of `fitting_form`.
    """
    data = _some_images(store, TRIED_IMAGES, device, workers)
    logits, truth = predict(network, data, TRIED_IMAGES)
    accuracy = {"with its classes in another order": _best_order(logits, truth, len(store.classes))}
    original = network.input
    for change, step in _input_changes(network, store):
        network.input = step.to(device)
        logits, _ = predict(network, data, TRIED_IMAGES)
        accuracy[change] = float((logits.argmax(1) == truth).double().mean())
    network.input = original
    if form and form.accuracy >= max(accuracy.values()):
        return f"with {form.change} it would be {100 * form.accuracy:.1f} %"
    best = max(accuracy, key=lambda change: accuracy[change])
    if accuracy[best] >= max(CONVINCING, required_accuracy(truth.cpu().numpy(), len(store.classes))):
        return f"{best} it would be {100 * accuracy[best]:.1f} %"
    return "check normalisation, class order, channels (RGB or BGR) and image size"


def _some_images(store: PreparedData, count: int, device: torch.device, workers: int | None) -> ImageLoader:
    """Validation images, evenly spaced."""
    n = len(store.labels("val"))
    chosen = np.unique(np.linspace(0, n - 1, min(count, n)).astype(np.int64))
    return make_loader(store, "val", device, chosen, workers)


def fitting_form(
    network: Network,
    settings: config.Network,
    load: Callable[[config.Network], Network | None],
    store: PreparedData,
    device: torch.device,
    workers: int | None = None,
) -> Form | None:
    """Return the form of the network, other than that of `settings`, that the weights were trained in; None if none.

    `load` returns the network of other settings with the same weights; None, or a UserError, if they do not fit. They
    are tried in every form, one change after the other as long as that helps. Weights of one form are clearly worse in
    another, so a change counts if it adds two points, and four standard deviations, on the same validation images. Of
    networks near chance on small images, pairs of changes are tried, too. A form near chance is none.
    """

    def forms(start: config.Network) -> Iterator[tuple[config.Network, Network]]:
        for form in twins(start):
            with contextlib.suppress(UserError):  # the architecture has nothing that would change
                twin = load(form)
                if twin is not None:
                    twin.input, twin.normalisation = network.input, network.normalisation
                    yield form, twin

    with contextlib.ExitStack() as stack:
        few, many = (
            stack.enter_context(contextlib.closing(_some_images(store, count, device, workers)))
            for count in (SCREENED, TRIED_IMAGES)
        )
        form, best = settings, network
        found = _better(forms(form), best, few, many)
        least = required_accuracy(store.labels("val"), len(store.classes))
        if found is None and _right(best, few).double().mean() < least and max(store.image_shape[1:]) <= SMALL:
            found = _better(chain.from_iterable(map(forms, twins(form))), best, few, many)
        while found is not None:
            form, best = found
            found = _better(forms(form), best, few, many)
        accuracy = float(_right(best, many).double().mean())
        return Form(describe(form, settings), accuracy) if best is not network and accuracy >= least else None


def _better(
    forms: Iterable[tuple[config.Network, Network]], than: Network, few: ImageLoader, many: ImageLoader
) -> tuple[config.Network, Network] | None:
    """Return the form that is right for most of a few images, if it is right for clearly more of many."""
    best, most = None, int(_right(than, few).sum())
    for form, network in forms:  # one at a time in memory, besides the best
        right = int(_right(network, few).sum())
        if right > most:
            best, most = (form, network), right
    if best is None:
        return None
    other, own = _right(best[1], many), _right(than, many)
    gained, lost = int((other & ~own).sum()), int((own & ~other).sum())
    return best if gained - lost >= max(LEAST_GAIN * len(own), GAIN_SIGMAS * (gained + lost) ** 0.5) else None


def _right(network: Network, data: ImageLoader) -> Tensor:
    """Whether the network is right, for each image; bool (B,), on the CPU."""
    logits, truth = predict(network.to(data.labels.device), data, TRIED_IMAGES)
    return (logits.argmax(1) == truth).cpu()


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
