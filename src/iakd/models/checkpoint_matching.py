"""Match the tensors of a foreign checkpoint to those of a network, by name or by structure."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from iakd.models.shapes import Shape

Shapes = Mapping[str, Shape]  # of tensors, by name

COUNTER = "num_batches_tracked"  # of BatchNorm: missing in old files, and used only if momentum is None
BOOKKEEPING = {"total_ops", "total_params", "n_averaged"}  # entries that profilers and weight averaging add
WRAPPERS = {"module", "_orig_mod"}  # of DataParallel and torch.compile, anywhere in a name
PREFIXES = {"model", "backbone", "net", "network", "encoder", "student", "teacher", "classifier_model", "base_model"}
SHORTCUT = re.compile(r"shortcut|downsample|down_sample|skip|identity|bypass|proj(?!ect)", re.IGNORECASE)


@dataclass(frozen=True)
class TensorGroup:
    """The tensors of one module, or a single tensor. `kind`: the last part of each name, and its shape."""

    name: str
    kind: tuple[tuple[str, Shape], ...]

    @property
    def is_shortcut(self) -> bool:
        """Whether the name looks like that of a shortcut."""
        return SHORTCUT.search(self.name) is not None

    def tensor(self, leaf: str) -> str:
        """Return the full name of one of the tensors."""
        return f"{self.name}.{leaf}" if self.name else leaf


def layers(shapes: Shapes) -> list[TensorGroup]:
    """Return the layers in the order of their first tensors, without batch counters and bookkeeping."""
    tensors: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if leaf != COUNTER and leaf not in BOOKKEEPING:
            tensors.setdefault(module, {})[leaf] = shape
    return [TensorGroup(name, tuple(sorted(leaves.items()))) for name, leaves in tensors.items()]


def readings(shapes: Shapes) -> list[dict[str, str]]:
    """Return possible readings of the names, each as reading → name: unchanged, without wrappers, without prefixes.

    Readings in which two names coincide are left out.
    """
    result = [{name: name for name in shapes}]
    for reading in (_unwrapped, _without_prefixes):
        found = {reading(name): name for name in shapes}
        if len(found) == len(shapes) and found not in result:
            result.append(found)
    return result


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _without_prefixes(name: str) -> str:
    parts = _unwrapped(name).split(".")
    while len(parts) > 2 and parts[0] in PREFIXES:
        parts = parts[1:]
    return ".".join(parts)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that orders numbers in names by value: layer2 before layer10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", name)]


def without_numbers(name: str) -> str:
    """Return the name with all numbers replaced."""
    return re.sub(r"\d+", "#", name)


NameMap = dict[str, str]  # of tensors, network → checkpoint
KindCounts = Counter[tuple[tuple[str, tuple[int, ...]], ...]]
UNIT = re.compile(r"stem|head|stages\.\d+\.\d+")
MAX_STEPS = 50_000  # of the search for an order of the modules


class Ambiguous(Exception):
    """The layers fit in several ways, and nothing shows which is right."""


def match(network: Shapes, checkpoint: Shapes, original_names: NameMap, ordered: bool) -> NameMap | None:
    """Return the checkpoint's name for each tensor of the network; None if they do not fit.

    `original_names` maps names in the library that the network comes from to the network's. `ordered`: the checkpoint's
    tensors are in the order of definition. Batch counters may be missing in the checkpoint. A convolution may have a
    bias on one side only, which is not in the result then: `iakd.models.external_weights` folds it into a BatchNorm, or
    sets it to zero where no convolution in the checkpoint has one. Raises Ambiguous.
    """
    found = _match(network, checkpoint, original_names, ordered)
    plain = _without_biases(network), _without_biases(checkpoint)
    if found is None and plain != (network, checkpoint):
        found = _match(*plain, original_names, ordered)
        return found and _with_biases(found, network, checkpoint)
    return found


def bias_of(weight: str, shapes: Shapes) -> str | None:
    """Return the name of the bias of a two-dimensional convolution, given that of its weight; None if it has none."""
    bias = f"{weight.removesuffix('weight')}bias"
    return bias if weight.rpartition(".")[2] == "weight" and len(shapes[weight]) == 4 and bias in shapes else None


def _without_biases(shapes: Shapes) -> Shapes:
    """Return the shapes without the biases of convolutions."""
    biases = {bias_of(name, shapes) for name in shapes}
    return {name: shape for name, shape in shapes.items() if name not in biases}


def _with_biases(found: NameMap, network: Shapes, checkpoint: Shapes) -> NameMap | None:
    """Return the names with those of biases on both sides; None if the checkpoint lacks some, but not all."""
    pairs = [(bias_of(name, network), bias_of(other, checkpoint)) for name, other in found.items()]
    both = {bias: other for bias, other in pairs if bias and other}
    some_lack = any(bias and not other for bias, other in pairs)
    return None if some_lack and any(other for _, other in pairs) else {**found, **both}


def _match(network: Shapes, checkpoint: Shapes, original_names: NameMap, ordered: bool) -> NameMap | None:
    found = by_name(network, checkpoint, original_names)
    same_shapes = all(network[name] == checkpoint[other] for name, other in found.items())
    if same_shapes and _complete(found, network, checkpoint):
        return found
    return _by_structure(network, checkpoint, ordered)


def by_name(network: Shapes, checkpoint: Shapes, original_names: NameMap) -> NameMap:
    """Return the names that occur in both, network → checkpoint, in the reading with most of them."""
    return max(
        (
            {name: names[known] for known, name in known_names.items() if known in names and name in network}
            for known_names in ({name: name for name in network}, original_names)
            for names in readings(checkpoint)
        ),
        key=len,
    )


def _complete(found: NameMap, network: Shapes, checkpoint: Shapes) -> bool:
    missing = [name for name in network if name not in found and not name.endswith(COUNTER)]
    used = set(found.values())
    extra = [name for name in checkpoint if name not in used and name.rpartition(".")[2] not in BOOKKEEPING]
    return not missing and not extra


def _by_structure(network: Shapes, checkpoint: Shapes, ordered: bool) -> NameMap | None:
    units = _units(layers(network))
    shortest = readings(checkpoint)[-1]
    file_layers = layers({name: checkpoint[full] for name, full in shortest.items()})
    if Counter(layer.kind for unit in units for layer in unit) != Counter(layer.kind for layer in file_layers):
        return None
    ordered = ordered and _is_in_numeric_order(file_layers)
    parts = _arrange(units, file_layers, ordered)
    if parts is None:
        return None
    names: NameMap = {}
    for unit, part in zip(units, parts, strict=True):
        for layer, counterpart in _matched(unit, part, ordered):
            for leaf in (*(leaf for leaf, _ in layer.kind), COUNTER):
                if layer.tensor(leaf) in network and counterpart.tensor(leaf) in shortest:
                    names[layer.tensor(leaf)] = shortest[counterpart.tensor(leaf)]
    return names


def _is_in_numeric_order(file_layers: Sequence[TensorGroup]) -> bool:
    """Return whether names that differ only in numbers are in numeric order, unlike in files sorted by name."""
    alike: dict[str, list[str]] = defaultdict(list)
    for layer in file_layers:
        alike[without_numbers(layer.name)].append(layer.name)
    return all(names == sorted(names, key=natural_key) for names in alike.values())


def _units(network_layers: Sequence[TensorGroup]) -> list[list[TensorGroup]]:
    units: dict[str, list[TensorGroup]] = {}
    for layer in network_layers:
        found = UNIT.match(layer.name)
        assert found, f"{layer.name}: a tensor outside stem, stages and head"
        units.setdefault(found[0], []).append(layer)
    return [units[name] for name in sorted(units, key=lambda name: (name == "head", name != "stem", natural_key(name)))]


# --- units ---


def _arrange(
    units: list[list[TensorGroup]], file_layers: list[TensorGroup], ordered: bool
) -> list[list[TensorGroup]] | None:
    """Return the checkpoint's layers unit by unit. Raises Ambiguous if several orders are possible."""
    wanted = [Counter(layer.kind for layer in unit) for unit in units]
    if ordered and (divided := _divide(wanted, file_layers)) and not _splits_a_block(units, divided):
        return divided
    for depth in (1, 2):  # of names: modules defined together share this many leading parts
        found = [
            parts
            for parts in _interleavings(wanted, _chains(file_layers, depth, ordered))
            if not _splits_a_block(units, parts)
        ]
        if len({tuple(frozenset(part) for part in parts) for parts in found}) > 1:
            raise Ambiguous("its modules fit in several orders, and safetensors does not keep the order of definition")
        if found:
            return found[0]
    return None


def _divide(wanted: list[KindCounts], file_layers: Sequence[TensorGroup]) -> list[list[TensorGroup]] | None:
    parts: list[list[TensorGroup]] = []
    position = 0
    for kinds in wanted:
        part = list(file_layers[position : position + kinds.total()])
        if Counter(layer.kind for layer in part) != kinds:
            return None
        parts.append(part)
        position += len(part)
    return parts


def _splits_a_block(units: list[list[TensorGroup]], parts: list[list[TensorGroup]]) -> bool:
    """Return whether a block would be assembled from parts of several modules that also contribute to other blocks.

    This happens if the layers of a pre-activation network are mistaken for those of an ordinary one, shifted by one.
    """
    for position, (unit, part) in enumerate(zip(units, parts, strict=True)):
        paths = [layer.name.split(".")[:-1] for layer in part]
        if unit[0].name.startswith(("stem", "head")) or all(path == paths[0] for path in paths):
            continue
        common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
        others = (layer for other in (*parts[:position], *parts[position + 1 :]) for layer in other)
        if any(layer.name.split(".")[: len(common)] == common for layer in others):
            return True
    return False


def _chains(file_layers: Sequence[TensorGroup], depth: int, ordered: bool) -> list[list[list[TensorGroup]]]:
    """Return groups of layers that share the first parts of their names, in chains ordered by the numbers in them."""
    groups: dict[str, list[TensorGroup]] = defaultdict(list)
    for layer in file_layers:
        groups[".".join(layer.name.split(".")[:depth])].append(layer)
    chains: dict[str, list[list[TensorGroup]]] = defaultdict(list)
    for name in sorted(groups, key=natural_key):
        members = groups[name] if ordered else sorted(groups[name], key=lambda layer: natural_key(layer.name))
        chains[without_numbers(name)].append(members)
    return list(chains.values())


def _interleavings(
    wanted: list[KindCounts], chains: list[list[list[TensorGroup]]]
) -> Iterator[list[list[TensorGroup]]]:
    """Yield all ways to interleave the chains so that they can be divided into the units."""
    total = sum(len(chain) for chain in chains)
    steps = 0

    def go(taken: tuple[int, ...], parts: list[list[TensorGroup]]) -> Iterator[list[list[TensorGroup]]]:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            raise Ambiguous("its modules could be in too many orders to try them all")
        if sum(taken) == total:
            yield parts
            return
        for i, chain in enumerate(chains):
            if taken[i] < len(chain):
                longer = _extend(wanted, parts, chain[taken[i]])
                if longer is not None:
                    yield from go((*taken[:i], taken[i] + 1, *taken[i + 1 :]), longer)

    yield from go((0,) * len(chains), [[]])


def _extend(
    wanted: list[KindCounts], parts: list[list[TensorGroup]], group: Sequence[TensorGroup]
) -> list[list[TensorGroup]] | None:
    """Return `parts` with the layers of `group` added to the current unit and later ones; None if one does not fit."""
    parts = [*parts[:-1], list(parts[-1])]
    for layer in group:
        if len(parts[-1]) == wanted[len(parts) - 1].total():
            if len(parts) == len(wanted):
                return None
            parts.append([])
        part, kinds = parts[-1], wanted[len(parts) - 1]
        if sum(other.kind == layer.kind for other in part) == kinds[layer.kind]:
            return None
        part.append(layer)
    return parts


# --- layers of one unit ---


def _matched(
    unit: Sequence[TensorGroup], part: Sequence[TensorGroup], ordered: bool
) -> Iterator[tuple[TensorGroup, TensorGroup]]:
    """Yield each layer of the network's unit with the checkpoint's."""
    pairs: dict[TensorGroup, TensorGroup] = {}
    by_kind: dict[object, tuple[list[TensorGroup], list[TensorGroup]]] = defaultdict(lambda: ([], []))
    for side, members in enumerate((unit, part)):
        for layer in members:
            by_kind[layer.kind][side].append(layer)
    undecided = []
    for in_network, in_checkpoint in by_kind.values():
        if _shortcuts(in_network) == _shortcuts(in_checkpoint):
            for wanted in (False, True):
                of_network = [layer for layer in in_network if layer.is_shortcut is wanted]
                of_checkpoint = [layer for layer in in_checkpoint if layer.is_shortcut is wanted]
                pairs.update(zip(of_network, _in_order(of_checkpoint, ordered), strict=True))
        elif len(in_network) == 1:
            pairs[in_network[0]] = in_checkpoint[0]
        else:
            undecided.append((in_network, in_checkpoint))
    # no name marks the shortcut, but a normalisation directly follows its convolution
    for in_network, in_checkpoint in undecided:
        if not ordered:
            raise _ambiguous(in_checkpoint)
        before_in_network, before_in_checkpoint = (_convolutions_before(members) for members in (unit, part))
        for layer in in_network:
            leader = pairs.get(before_in_network[layer]) if layer in before_in_network else None
            found = [
                other for other in in_checkpoint if leader is not None and before_in_checkpoint.get(other) == leader
            ]
            if len(found) != 1:
                raise _ambiguous(in_checkpoint)
            pairs[layer] = found[0]
    yield from pairs.items()


def _shortcuts(members: Sequence[TensorGroup]) -> int:
    return sum(layer.is_shortcut for layer in members)


def _convolutions_before(members: Sequence[TensorGroup]) -> dict[TensorGroup, TensorGroup]:
    """Return the convolution or linear layer directly before each normalisation, in the order of definition."""
    found = {}
    for before, layer in pairwise(members):
        widths = [dict(each.kind).get("weight", ()) for each in (before, layer)]
        if len(widths[0]) > 1 and len(widths[1]) == 1 and widths[0][0] == widths[1][0]:
            found[layer] = before
    return found


def _in_order(members: list[TensorGroup], ordered: bool) -> list[TensorGroup]:
    """Return layers of one kind in the order of definition if it is known, else in numeric order."""
    if ordered:
        return members
    if len({without_numbers(layer.name) for layer in members}) > 1:
        raise _ambiguous(members)
    return sorted(members, key=lambda layer: natural_key(layer.name))


def _ambiguous(members: Sequence[TensorGroup]) -> Ambiguous:
    return Ambiguous(
        f"{members[0].name} and {members[1].name} have the same shape, and nothing shows which comes first"
    )
