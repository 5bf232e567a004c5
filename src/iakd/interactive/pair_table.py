"""A table of the block slots of two networks, as `iakd pairs` prints it."""

import contextlib

import torch
from torch import nn

from iakd import config
from iakd.errors import UserError
from iakd.interactive.hybrid import TeacherBranch
from iakd.models import Network, build
from iakd.models.flops import block_costs, model_cost
from iakd.models.pairing import BlockGroup, BlockPair, pair_blocks
from iakd.models.shapes import Shape

HEADER = ("stage", "student", "shapes", "teacher", "shapes", "adapters", "params", "", "", "MACs", "")
SUBHEADER = ("", "block", "", "blocks", "", "", "student", "teacher", "adapters", "student", "teacher")


def pair_table(teacher: config.Network, student: config.Network, size: int | None, channels: int, classes: int) -> str:
    """Return, as text, which blocks are swapped for which, with shapes, adapters, parameters and MACs per image.

    `size` is the side of the images in pixels; by default, the size that the networks are designed for. Raises
    UserError, with the reason, if the pair is impossible.
    """
    for network in (teacher, student):
        if isinstance(network, config.Teacher) and network.black_box:
            raise UserError(f"{network.name} is a black box, of which no blocks are known: {network.origin}")
    with without_weights(teacher, student):
        table = _table(build(teacher, channels, classes), build(student, channels, classes), size, channels, classes)
    return f"{teacher.name} → {student.name}, {table}"


def without_weights(*networks: config.Network) -> contextlib.AbstractContextManager[object]:
    """Build modules on the meta device, as only shapes matter; not those of other packages, which may compute there."""
    families = {network.arch.partition("/")[0] for network in networks if "/" in network.arch}
    return torch.device("meta") if families <= {"torchvision"} else contextlib.nullcontext()


def _table(teacher_network: Network, student_network: Network, size: int | None, channels: int, classes: int) -> str:
    side = size or max(teacher_network.size, student_network.size)
    image = (channels, side, side)
    try:
        pairs = pair_blocks(teacher_network, student_network, image)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"these networks do not accept images of {side}×{side} ({error}); try --size 32") from None
    student_costs, teacher_costs = block_costs(student_network, image), block_costs(teacher_network, image)

    rows = []
    for pair in pairs:
        branch = TeacherBranch(pair, nn.Identity())
        adapters = sum(parameter.numel() for parameter in branch.parameters())
        rows.append(
            (
                str(pair.stage + 1),
                _positions(pair.student),
                _shapes(pair.student),
                _positions(pair.teacher),
                _shapes(pair.teacher),
                describe_adapters(pair),
                short(_total(student_costs, pair.student, "parameters")),
                short(_total(teacher_costs, pair.teacher, "parameters")),
                short(adapters) if adapters else "–",
                short(_total(student_costs, pair.student, "macs")),
                short(_total(teacher_costs, pair.teacher, "macs")),
            )
        )
    lines = [
        f"images {_shape(image)}, {classes} classes: {len(pairs)} block slots",
        "",
        *_aligned([HEADER, SUBHEADER, *rows]),
        "",
    ]
    student_cost, teacher_cost = model_cost(student_network, image), model_cost(teacher_network, image)
    for key, name in (("parameters", "parameters"), ("macs", "MACs per image")):
        lines.append(
            f"{name}: student {short(student_cost[key])}, teacher {short(teacher_cost[key])} "
            f"({teacher_cost[key] / student_cost[key]:.1f} times as many)"
        )
    return "\n".join(lines)


def _total(costs: list[dict[str, int]], group: BlockGroup, key: str) -> int:
    """Return the sum of a cost over the blocks of a group; `costs` has one entry per block of the network."""
    return sum(row[key] for row in costs[group.first : group.last + 1])


def describe_adapters(pair: BlockPair) -> str:
    """Return the changes of shape before (in) and after (out) the teacher's blocks, or `none`."""
    sides = (
        ("in", pair.student.before, pair.teacher.before),
        ("out", pair.teacher.after, pair.student.after),
    )
    adapters = [f"{side} {_change(start, end)}" for side, start, end in sides if start != end]
    return ", ".join(adapters) or "none"


def _change(start: Shape, end: Shape) -> str:
    if len(start) == 2:  # tokens
        return f"{start[-1]}→{end[-1]}"
    channels = [f"{start[0]}→{end[0]}"] if start[0] != end[0] else []
    maps = [f"{_shape(start[1:])}→{_shape(end[1:])}"] if start[1:] != end[1:] else []
    return " ".join(channels + maps)


def short(number: int) -> str:
    """Return a number with three digits and a unit: 278 k, 4.09 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * factor:
            value = number / factor
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return str(number)


def _positions(group: BlockGroup) -> str:
    first, last = group.first + 1, group.last + 1
    return str(first) if first == last else f"{first}–{last}"


def _shapes(group: BlockGroup) -> str:
    return f"{_shape(group.before)} → {_shape(group.after)}"


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines; the last five columns, which are numbers, are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text_columns = len(widths) - 5
    return [
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
