"""Where `hints` gave its hints: how alike the teacher's blocks are, their clusters, and the centres."""

import json
import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from iakd.reporting import style
from iakd.reporting.comparison import Comparison, Pair

NAME = "hints"  # of the method, and of its record in metrics.json
COLUMNS, SIDE, HEAD = 3, 2.9, 0.62  # inches: a panel and what stands above it
LEVELS = 16  # shades of a heat map

Record = dict[str, Any]
Corners = list[tuple[float, float]]


def recorded(comparison: Comparison) -> bool:
    """Whether any student got hints."""
    return any(_panels(pair) for pair in comparison.pairs)


def draw(comparison: Comparison) -> Figure:
    """A heat map for each choice of hint points; seeds and methods that share one share the panel."""
    shown = [(pair, panels) for pair in comparison.pairs if (panels := _panels(pair))]
    if not shown:
        return style.placeholder("No method of this experiment gives hints at clusters of blocks.")
    rows = [math.ceil(len(panels) / COLUMNS) for _, panels in shown]
    heights = [(SIDE + HEAD) * n + 0.3 for n in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, (pair, panels), n in zip(blocks, shown, rows, strict=True):
        block.set_facecolor("none")
        title = f"{pair.title}: CKA between the blocks of {pair.teacher_name}, clusters, and hint points"
        block.suptitle(title, x=0.008, ha="left", fontsize=9, fontweight="bold")
        axes = block.subplots(n, COLUMNS, squeeze=False).ravel()
        for panel in axes:
            panel.set_axis_off()
        for panel, (names, record) in zip(axes, panels.items(), strict=False):
            _panel(panel, names, record)
    return figure


def _panels(pair: Pair) -> dict[str, Record]:
    """Records by the names of the methods that they belong to."""
    labels: dict[str, list[str]] = {}
    for entry in pair.ranked:
        for result in entry.results:
            if NAME in result.metrics:
                names = labels.setdefault(json.dumps(result.metrics[NAME]), [])
                names += [entry.label] if entry.label not in names else []
    return {", ".join(names): json.loads(text) for text, names in labels.items()}


def _panel(axes: Axes, names: str, record: Record) -> None:
    count = len(record["cka"])
    for level, squares in enumerate(_levels(record["cka"])):
        if squares:
            path = Path.make_compound_path(*(Path([*corners, corners[0]], closed=True) for corners in squares))
            axes.add_patch(PathPatch(path, facecolor=style.IAKD, alpha=0.92 * level / (LEVELS - 1), linewidth=0))
    for first, last in _runs(record["clusters"]):
        side = last - first + 1
        place = (first - 0.5, first - 0.5)
        box = Rectangle(place, side, side, fill=False, edgecolor=style.OTHER, linewidth=1.6, clip_on=False)
        axes.add_patch(box)
    points = record["points"]
    axes.plot(points, points, "o", color=style.OTHER, markeredgecolor=style.PAPER, markersize=7)
    hints = ", ".join(f"{point + 1} → {ours + 1}" for point, ours in zip(points, record["student"], strict=True))
    axes.set_axis_on()
    axes.set_title(f"{style.short(names, 40)}\nblock of the teacher → of the student: {hints}", fontsize=8)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_major_formatter(FuncFormatter(lambda block, _: f"{block + 1:.0f}"))


def _levels(cka: list[list[float]]) -> list[list[Corners]]:
    """Rectangles of each level of similarity: neighbours in a row that are of one level are one rectangle."""
    found: list[list[Corners]] = [[] for _ in range(LEVELS)]
    for y, row in enumerate(cka):
        x = 0
        for level, cells in groupby(min(LEVELS - 1, int(value * LEVELS)) for value in row):
            end = x + len(list(cells))
            low, high, top, bottom = x - 0.5, end - 0.5, y - 0.5, y + 0.5
            found[level].append([(low, top), (high, top), (high, bottom), (low, bottom)])
            x = end
    return found


def _runs(clusters: list[int]) -> Iterator[tuple[int, int]]:
    """First and last block of each stretch of blocks of one cluster."""
    first = 0
    for _, members in groupby(clusters):
        last = first + len(list(members)) - 1
        yield first, last
        first = last + 1
