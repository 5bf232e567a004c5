"""The hint points of `hints` and `hint_points`: similarity of the teacher's blocks, their clusters and centres."""

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

from iakd.reporting.figures import style
from iakd.reporting.results import Comparison, PairComparison

NAMES = "hints", "hint_points"  # of the methods, and of their records in metrics.json
COLUMNS = 3
PANEL_SIZE, HEADER_HEIGHT = 2.9, 0.62  # inches
LEVELS = 16  # of colour in a heat map

HintRecord = dict[str, Any]
Corners = list[tuple[float, float]]


def has_hints(comparison: Comparison) -> bool:
    """Whether any student was trained with hints."""
    return any(_panels(pair) for pair in comparison.pairs)


def draw_hint_points(comparison: Comparison) -> Figure:
    """Draw a heat map for each choice of hint points; seeds and methods with the same choice share a panel."""
    shown = [(pair, panels) for pair in comparison.pairs if (panels := _panels(pair))]
    if not shown:
        return style.placeholder("No method of this experiment uses hints at clusters of blocks.")
    rows = [math.ceil(len(panels) / COLUMNS) for _, panels in shown]
    heights = [(PANEL_SIZE + HEADER_HEIGHT) * n + 0.3 for n in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    sections = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for section, (pair, panels), n in zip(sections, shown, rows, strict=True):
        title = f"{pair.title}: CKA between the blocks of {pair.teacher_name}, clusters, and hint points"
        style.title_section(section, title)
        axes = section.subplots(n, COLUMNS, squeeze=False).ravel()
        for panel in axes:
            panel.set_axis_off()
        for panel, (names, record) in zip(axes, panels.items(), strict=False):
            _panel(panel, names, record)
    return figure


def _panels(pair: PairComparison) -> dict[str, HintRecord]:
    """Return records by the labels of the methods that share them."""
    labels: dict[str, list[str]] = {}
    for results in pair.ranked:
        for model in results.models:
            for record in (model.metrics[name] for name in NAMES if name in model.metrics):
                names = labels.setdefault(json.dumps(record), [])
                names += [results.label] if results.label not in names else []
    return {", ".join(names): json.loads(text) for text, names in labels.items()}


def _panel(axes: Axes, names: str, record: HintRecord) -> None:
    count = len(record["cka"])
    for level, squares in enumerate(level_rectangles(record["cka"])):
        if squares:
            path = Path.make_compound_path(*(Path([*corners, corners[0]], closed=True) for corners in squares))
            axes.add_patch(PathPatch(path, facecolor=style.IAKD, alpha=0.92 * level / (LEVELS - 1), linewidth=0))
    for first, last in _cluster_ranges(record["clusters"]):
        side = last - first + 1
        corner = (first - 0.5, first - 0.5)
        box = Rectangle(corner, side, side, fill=False, edgecolor=style.OTHER, linewidth=1.6, clip_on=False)
        axes.add_patch(box)
    points = record["points"]
    axes.plot(points, points, "o", color=style.OTHER, markeredgecolor=style.PAPER, markersize=7)
    hints = ", ".join(f"{point + 1} → {target + 1}" for point, target in zip(points, record["student"], strict=True))
    axes.set_axis_on()
    title = f"{style.short(names, 40)}\nteacher block → student block: {hints}"
    if "silhouettes" in record:
        title += f"\n{len(points)} by their mean silhouette of {record['silhouettes'][str(len(points))]:.2f}"
    axes.set_title(title, fontsize=8)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_major_formatter(FuncFormatter(lambda block, _: f"{block + 1:.0f}"))


def level_rectangles(cka: list[list[float]]) -> list[list[Corners]]:
    """Return the rectangles of each level of similarity; neighbours in a row with the same level are joined."""
    found: list[list[Corners]] = [[] for _ in range(LEVELS)]
    for y, row in enumerate(cka):
        x = 0
        for level, cells in groupby(min(LEVELS - 1, int(value * LEVELS)) for value in row):
            end = x + len(list(cells))
            low, high, top, bottom = x - 0.5, end - 0.5, y - 0.5, y + 0.5
            found[level].append([(low, top), (high, top), (high, bottom), (low, bottom)])
            x = end
    return found


def _cluster_ranges(clusters: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last block of each run of neighbours in the same cluster."""
    first = 0
    for _, members in groupby(clusters):
        last = first + len(list(members)) - 1
        yield first, last
        first = last + 1
