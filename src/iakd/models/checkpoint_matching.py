"""The layers of a network as they show in the names and shapes of its tensors."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

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


Names = dict[str, str]  # of tensors, ours → theirs
Kinds = Counter[tuple[tuple[str, tuple[int, ...]], ...]]
UNIT = re.compile(r"stem|head|stages\.\d+\.\d+")
MOST_STEPS = 50_000  # of a search for an order


class Ambiguous(Exception):
    """The layers fit in several ways, and nothing says which is right."""


def match(ours: Shapes, theirs: Shapes, original_names: Names, ordered: bool) -> Names | None:
    """Our tensors' names → theirs, for all of ours and all of theirs; None where they do not fit.

    `original_names` are names in the library that our network was cut from (theirs → ours). `ordered`: their names
    stand in the order of definition. Counters of batches may be missing from theirs. Raises Ambiguous.
    """
    found = by_name(ours, theirs, original_names)
    if all(ours[mine] == theirs[name] for mine, name in found.items()) and _complete(found, ours, theirs):
        return found
    return _by_structure(ours, theirs, ordered)


def by_name(ours: Shapes, theirs: Shapes, original_names: Names) -> Names:
    """Ours → theirs for all tensors that have one name in both, in the reading that has most of them."""
    return max(
        (
            {mine: names[name] for name, mine in known.items() if name in names and mine in ours}
            for known in ({name: name for name in ours}, original_names)
            for names in readings(theirs)
        ),
        key=len,
    )


def _complete(found: Names, ours: Shapes, theirs: Shapes) -> bool:
    missing = [name for name in ours if name not in found and not name.endswith(COUNTER)]
    used = set(found.values())
    extra = [name for name in theirs if name not in used and name.rpartition(".")[2] not in BOOKKEEPING]
    return not missing and not extra


def _by_structure(ours: Shapes, theirs: Shapes, ordered: bool) -> Names | None:
    units = _units(layers(ours))
    bare = readings(theirs)[-1]
    foreign = layers({name: theirs[full] for name, full in bare.items()})
    if Counter(layer.kind for unit in units for layer in unit) != Counter(layer.kind for layer in foreign):
        return None
    ordered = ordered and _as_numbered(foreign)
    parts = _arranged(units, foreign, ordered)
    if parts is None:
        return None
    names: Names = {}
    for unit, part in zip(units, parts, strict=True):
        for mine, their in _matched(unit, part, ordered):
            for leaf in (*(leaf for leaf, _ in mine.kind), COUNTER):
                if mine.tensor(leaf) in ours and their.tensor(leaf) in bare:
                    names[mine.tensor(leaf)] = bare[their.tensor(leaf)]
    return names


def _as_numbered(foreign: Sequence[Layer]) -> bool:
    """Whether names that differ in numbers only come in the order of these: not so in files sorted by name."""
    alike: dict[str, list[str]] = defaultdict(list)
    for layer in foreign:
        alike[without_numbers(layer.name)].append(layer.name)
    return all(names == sorted(names, key=natural) for names in alike.values())


def _units(ours: Sequence[Layer]) -> list[list[Layer]]:
    units: dict[str, list[Layer]] = {}
    for layer in ours:
        found = UNIT.match(layer.name)
        assert found, f"{layer.name}: a tensor outside stem, stages and head"
        units.setdefault(found[0], []).append(layer)
    return [units[name] for name in sorted(units, key=lambda name: (name == "head", name != "stem", natural(name)))]


# --- units ---


def _arranged(units: list[list[Layer]], foreign: list[Layer], ordered: bool) -> list[list[Layer]] | None:
    """Their layers, unit by unit. Raises Ambiguous where they can be put in several orders."""
    wanted = [Counter(layer.kind for layer in unit) for unit in units]
    if ordered and (cut := _cut(wanted, foreign)) and not _torn(units, cut):
        return cut
    for depth in (1, 2):  # of names: what is defined together is called alike up to here
        found = [parts for parts in _orders(wanted, _chains(foreign, depth, ordered)) if not _torn(units, parts)]
        if len({tuple(frozenset(part) for part in parts) for parts in found}) > 1:
            raise Ambiguous("its modules can be put in several orders, and safetensors does not keep the right one")
        if found:
            return found[0]
    return None


def _cut(wanted: list[Kinds], foreign: Sequence[Layer]) -> list[list[Layer]] | None:
    parts: list[list[Layer]] = []
    position = 0
    for kinds in wanted:
        part = list(foreign[position : position + kinds.total()])
        if Counter(layer.kind for layer in part) != kinds:
            return None
        parts.append(part)
        position += len(part)
    return parts


def _torn(units: list[list[Layer]], parts: list[list[Layer]]) -> bool:
    """Whether a block is put together from pieces of several modules that other blocks have pieces of, too.

    So it would be if layers of a pre-activation network were taken for those of an ordinary one, shifted by one.
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


def _chains(foreign: Sequence[Layer], depth: int, ordered: bool) -> list[list[list[Layer]]]:
    """Groups of layers by the first parts of their names, in chains within which numbers tell the order."""
    groups: dict[str, list[Layer]] = defaultdict(list)
    for layer in foreign:
        groups[".".join(layer.name.split(".")[:depth])].append(layer)
    chains: dict[str, list[list[Layer]]] = defaultdict(list)
    for name in sorted(groups, key=natural):
        members = groups[name] if ordered else sorted(groups[name], key=lambda layer: natural(layer.name))
        chains[without_numbers(name)].append(members)
    return list(chains.values())


def _orders(wanted: list[Kinds], chains: list[list[list[Layer]]]) -> Iterator[list[list[Layer]]]:
    """All ways to interleave the chains so that they can be cut into the units."""
    total = sum(len(chain) for chain in chains)
    steps = 0

    def go(taken: tuple[int, ...], parts: list[list[Layer]]) -> Iterator[list[list[Layer]]]:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise Ambiguous("its modules can be put in too many orders to try them all")
        if sum(taken) == total:
            yield parts
            return
        for i, chain in enumerate(chains):
            if taken[i] < len(chain):
                longer = _continued(wanted, parts, chain[taken[i]])
                if longer is not None:
                    yield from go((*taken[:i], taken[i] + 1, *taken[i + 1 :]), longer)

    yield from go((0,) * len(chains), [[]])


def _continued(wanted: list[Kinds], parts: list[list[Layer]], group: Sequence[Layer]) -> list[list[Layer]] | None:
    """`parts` with the layers of `group` put into the current unit and those after it; None where one does not fit."""
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


def _matched(unit: Sequence[Layer], part: Sequence[Layer], ordered: bool) -> Iterator[tuple[Layer, Layer]]:
    """Each layer of our unit with theirs."""
    pairs: dict[Layer, Layer] = {}
    by_kind: dict[object, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
    for side, members in enumerate((unit, part)):
        for layer in members:
            by_kind[layer.kind][side].append(layer)
    several = []
    for ours, theirs in by_kind.values():
        if _shortcuts(ours) == _shortcuts(theirs):
            for wanted in (False, True):
                mine = [layer for layer in ours if layer.is_shortcut is wanted]
                their = [layer for layer in theirs if layer.is_shortcut is wanted]
                pairs.update(zip(mine, _in_order(their, ordered), strict=True))
        elif len(ours) == 1:
            pairs[ours[0]] = theirs[0]
        else:
            several.append((ours, theirs))
    for ours, theirs in several:  # no name tells the shortcut: but a normalisation stands right after its convolution
        if not ordered:
            raise _unclear(theirs)
        before_ours, before_theirs = (_before(members) for members in (unit, part))
        for layer in ours:
            leader = pairs.get(before_ours[layer]) if layer in before_ours else None
            found = [other for other in theirs if leader is not None and before_theirs.get(other) == leader]
            if len(found) != 1:
                raise _unclear(theirs)
            pairs[layer] = found[0]
    yield from pairs.items()


def _shortcuts(members: Sequence[Layer]) -> int:
    return sum(layer.is_shortcut for layer in members)


def _before(members: Sequence[Layer]) -> dict[Layer, Layer]:
    """The convolution or linear layer right before each normalisation, in the order of definition."""
    found = {}
    for before, layer in pairwise(members):
        widths = [dict(each.kind).get("weight", ()) for each in (before, layer)]
        if len(widths[0]) > 1 and len(widths[1]) == 1 and widths[0][0] == widths[1][0]:
            found[layer] = before
    return found


def _in_order(members: list[Layer], ordered: bool) -> list[Layer]:
    """Layers of one kind as they follow each other: as defined, or else as numbered."""
    if ordered:
        return members
    if len({without_numbers(layer.name) for layer in members}) > 1:
        raise _unclear(members)
    return sorted(members, key=lambda layer: natural(layer.name))


def _unclear(members: Sequence[Layer]) -> Ambiguous:
    return Ambiguous(f"{members[0].name} and {members[1].name} have one shape, and nothing says which comes first")
