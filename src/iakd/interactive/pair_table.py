"""The pairing of two networks as a table to be read."""

from torch import nn

from iakd import config
from iakd.errors import UserError
from iakd.interactive.hybrid import TeacherBranch
from iakd.models import build
from iakd.models.flops import block_costs, model_cost
from iakd.models.pairing import BlockGroup, BlockPair, pair_blocks
from iakd.models.shapes import Shape

HEADER = ("stage", "student", "shapes", "teacher", "shapes", "adapters", "params", "", "", "MACs", "")
SUBHEADER = ("", "block", "", "blocks", "", "", "student", "teacher", "adapters", "student", "teacher")


def overview(teacher: config.Network, student: config.Network, size: int | None, channels: int, classes: int) -> str:
    """Which blocks are swapped for which, with shapes, adapters, parameters and MACs of one image; as text.

    `size` is the side of the images in pixels; default: what the networks were designed for. Raises UserError, saying
    why, where the pair is impossible.
    """
    theirs, ours = build(teacher, channels, classes), build(student, channels, classes)
    side = size or max(theirs.size, ours.size)
    image = (channels, side, side)
    try:
        pairs = pair_blocks(theirs, ours, image)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"images of {side}×{side} do not go through these networks ({error}); try --size 32") from None
    our_costs, their_costs = block_costs(ours, image), block_costs(theirs, image)

    def total(costs: list[dict[str, int]], part: BlockGroup, what: str) -> int:
        return sum(row[what] for row in costs[part.first : part.first + len(part.blocks)])

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
                short(total(our_costs, pair.student, "parameters")),
                short(total(their_costs, pair.teacher, "parameters")),
                short(adapters) if adapters else "–",
                short(total(our_costs, pair.student, "macs")),
                short(total(their_costs, pair.teacher, "macs")),
            )
        )
    whole = [model_cost(network, image) for network in (ours, theirs)]
    lines = [
        f"{teacher.name} → {student.name}, images {_shape(image)}, {classes} classes: {len(pairs)} places to swap",
        "",
        *_aligned([HEADER, SUBHEADER, *rows]),
        "",
    ]
    for what, name in (("parameters", "parameters"), ("macs", "MACs per image")):
        our_number, their_number = (costs[what] for costs in whole)
        lines.append(
            f"{name}: student {short(our_number)}, teacher {short(their_number)} "
            f"({their_number / our_number:.1f} times as many)"
        )
    return "\n".join(lines)


def describe_adapters(pair: BlockPair) -> str:
    """What stands before and after the teacher's blocks, or `none`."""
    sides = (
        ("in", pair.student.before, pair.teacher.before),
        ("out", pair.teacher.after, pair.student.after),
    )
    parts = [f"{where} {_change(start, end)}" for where, start, end in sides if start != end]
    return ", ".join(parts) or "none"


def _change(start: Shape, end: Shape) -> str:
    if len(start) == 2:
        return f"{start[-1]}→{end[-1]}"
    channels = [f"{start[0]}→{end[0]}"] if start[0] != end[0] else []
    maps = [f"{_shape(start[1:])}→{_shape(end[1:])}"] if start[1:] != end[1:] else []
    return " ".join(channels + maps)


def short(number: int) -> str:
    """Three digits and a unit: 278 k, 4.09 G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * factor:
            value = number / factor
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return str(number)


def _positions(part: BlockGroup) -> str:
    first, last = part.first + 1, part.first + len(part.blocks)
    return str(first) if first == last else f"{first}–{last}"


def _shapes(part: BlockGroup) -> str:
    return f"{_shape(part.before)} → {_shape(part.after)}"


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines; the numbers, in the last five columns, to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = len(widths) - 5
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
