"""The layers of a network as they show in the names and shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from iakd.models.shapes import Shape

Shapes = Mapping[str, Shape]  # of tensors, by name

COUNTER = "num_batches_tracked"  # of BatchNorm: not in old files, and only of use where momentum is None
BOOKKEEPING = {"total_ops", "total_params", "n_averaged"}  # what profilers and averaging leave in a state_dict
WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and torch.compile, anywhere in a name
PREFIXES = {"model", "backbone", "net", "network", "encoder", "student", "teacher", "classifier_model", "base_model"}
SHORTCUT = re.compile(r"shortcut|downsample|down_sample|skip|identity|bypass|proj(?!ect)", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """The tensors of one module, or a tensor by itself. `kind`: the last parts of their names, and their shapes."""

    name: str
    kind: tuple[tuple[str, Shape], ...]

    @property
    def is_shortcut(self) -> bool:
        """Whether its name says that it stands beside a block's main path."""
        return SHORTCUT.search(self.name) is not None

    def tensor(self, leaf: str) -> str:
        """The full name of one of its tensors."""
        return f"{self.name}.{leaf}" if self.name else leaf


def layers(shapes: Shapes) -> list[Layer]:
    """The layers in the order of their first tensors; counters of batches and bookkeeping are left out."""
    tensors: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if leaf != COUNTER and leaf not in BOOKKEEPING:
            tensors.setdefault(module, {})[leaf] = shape
    return [Layer(name, tuple(sorted(leaves.items()))) for name, leaves in tensors.items()]


def readings(shapes: Shapes) -> list[dict[str, str]]:
    """The names as they stand, without what wrappers put in, and without what frameworks put in front: → as they stand.

    Readings in which two names would become one are left out.
    """
    result = [{name: name for name in shapes}]
    for reading in (_unwrapped, _bare):
        found = {reading(name): name for name in shapes}
        if len(found) == len(shapes) and found not in result:
            result.append(found)
    return result


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _bare(name: str) -> str:
    parts = _unwrapped(name).split(".")
    while len(parts) > 2 and parts[0] in PREFIXES:
        parts = parts[1:]
    return ".".join(parts)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts names as people count: layer2 before layer10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", name)]


def without_numbers(name: str) -> str:
    """What is left of a name when numbers are taken for one another."""
    return re.sub(r"\d+", "#", name)
