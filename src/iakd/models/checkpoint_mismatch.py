"""Explain why a checkpoint does not fit: the settings that it would fit, or a table of the differences."""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import torch

from iakd import config, models
from iakd.errors import UserError
from iakd.files import plural
from iakd.models.checkpoint_matching import (
    BOOKKEEPING,
    COUNTER,
    Ambiguous,
    NameMap,
    Shapes,
    TensorGroup,
    by_name,
    layers,
    match,
)

ROWS = 12  # of the table that are shown
NOTHING = "–"
MismatchRow = tuple[str, str, str, str]  # name and shape here, name and shape in the file

log = logging.getLogger(__name__)


def explain(settings: config.Network, channels: int, classes: int, theirs: Shapes, ordered: bool) -> str:
    """Return in one line why tensors of these shapes are not weights of the network that `settings` describe.

    If no other setting explains it, a table of the differences is logged first.
    """
    its_classes = next((shape[0] for shape in reversed(list(theirs.values())) if len(shape) == 2), classes)
    depths = {shape[1] for shape in theirs.values() if len(shape) == 4}
    its_channels = next((depth for depth in (3, 4, 1) if depth in depths), channels)
    for other in _near(settings, theirs):
        if _fits(other, its_channels, its_classes, theirs, ordered):
            return _difference(settings, other, (channels, its_channels), (classes, its_classes))
    with torch.device("meta"):
        network = models.build(settings, channels, classes)
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    rows = _rows(ours, theirs, network.original_names)
    if not rows:
        return f"has the layers of {settings.arch}, but its blocks are composed differently; nothing was loaded"
    log.error("%s", "\n".join(_table(rows)))
    differ = plural(len(rows), "tensor differs", "tensors differ")
    return f"does not fit {settings.arch}, {differ} (table above); nothing was loaded"


def _near(settings: config.Network, theirs: Shapes) -> Iterator[config.Network]:
    """Yield the requested network, then similar ones, the most likely first."""
    yield settings
    widths = sorted({shape[0] for shape in theirs.values() if len(shape) == 4})[:2]
    for width in (settings.width, None, *widths):
        for shortcut in ("B", settings.shortcut if settings.shortcut != "B" else "A"):
            yield settings.model_copy(update={"width": width, "shortcut": shortcut})
    for arch in models.ARCHITECTURES:
        if "/" not in arch:
            for shortcut in ("B", "A"):
                other: dict[str, Any] = {"arch": arch, "width": None, "shortcut": shortcut, "variant": []}
                yield settings.model_copy(update=other)


def _fits(settings: config.Network, channels: int, classes: int, theirs: Shapes, ordered: bool) -> bool:
    try:
        with torch.device("meta"):
            network = models.build(settings, channels, classes)
        ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        return match(ours, theirs, network.original_names, ordered) is not None
    except Ambiguous:
        return True
    except UserError:  # a setting that the family does not use
        return False


def _difference(
    settings: config.Network, other: config.Network, channels: tuple[int, int], classes: tuple[int, int]
) -> str:
    """Return what would have to change in the settings, or what differs in the data. Pairs: (here, in the file)."""
    changes = [
        f"without {name}" if getattr(other, name) is None else f"with {name}: {getattr(other, name)}"
        for name in ("arch", "width", "shortcut")
        if getattr(other, name) != getattr(settings, name)
    ]
    reasons = []
    if other.arch == settings.arch and other.shortcut != settings.shortcut:
        has = "convolutions" if other.shortcut == "B" else "no convolutions"
        reasons.append(f"this checkpoint has {has} in its shortcuts")
    if changes:
        reasons.append(f"it fits a teacher {', '.join(changes)}")
    if classes[0] != classes[1]:
        reasons.append(f"it tells {classes[1]} classes apart, and the data set has {classes[0]}")
    if channels[0] != channels[1]:
        reasons.append(f"it takes images of {channels[1]} channels, and the data set's have {channels[0]}")
    return "; ".join(reasons)


def _rows(ours: Shapes, theirs: Shapes, original_names: NameMap) -> list[MismatchRow]:
    """Return the differences: by name if most names are the same, else layers of kinds that only one side has."""
    named = by_name(ours, theirs, original_names)
    if len(named) > len(ours) / 2:
        used = set(named.values())
        rows = [
            (name, _text(shape), named[name], _text(theirs[named[name]]))
            for name, shape in ours.items()
            if name in named and theirs[named[name]] != shape
        ]
        here = [name for name in ours if name not in named and not name.endswith(COUNTER)]
        there = [name for name in theirs if name not in used and name.rpartition(".")[2] not in {COUNTER, *BOOKKEEPING}]
    else:
        rows = []
        here = _unpaired(layers(ours), layers(theirs))
        there = _unpaired(layers(theirs), layers(ours))
    only_here = [(name, _text(ours[name]), NOTHING, "") for name in here]
    only_there = [(NOTHING, "", name, _text(theirs[name])) for name in there]
    in_turns = chain.from_iterable(zip_longest(only_here, only_there))  # so that the first rows show both sides
    return rows + [row for row in in_turns if row]


def _unpaired(some: list[TensorGroup], others: list[TensorGroup]) -> list[str]:
    """Return the tensors of layers of kinds that are more frequent here than in `others`."""
    left = Counter(layer.kind for layer in others)
    names = []
    for layer in some:
        left[layer.kind] -= 1
        if left[layer.kind] < 0:
            names += [layer.tensor(leaf) for leaf, _ in layer.kind]
    return names


def _table(rows: list[MismatchRow]) -> list[str]:
    head = ("here", "shape", "in the file", "shape")
    shown = [head, *rows[:ROWS]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    return lines + ([f"… and {len(rows) - ROWS} more"] if len(rows) > ROWS else [])


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "number"
