"""Small multiples: a block per pair, in it a small panel per method."""

import math
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iakd.reporting import style

COLUMNS = 4
HEIGHT = 1.45  # of a panel, inches
HEAD = 0.34  # of a block's title


def small_multiples(titles: list[str], counts: list[int]) -> tuple[Figure, Iterator[list[Axes]]]:
    """A figure with a titled block of `counts[i]` equal panels for each of `titles`, and the panels of each block."""
    rows = [math.ceil(count / COLUMNS) for count in counts]
    heights = [HEIGHT * n + HEAD for n in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(titles), 1, squeeze=False, height_ratios=heights)[:, 0]
    return figure, (_panels(*block) for block in zip(blocks, titles, counts, rows, strict=True))


def _panels(block: Figure, title: str, count: int, rows: int) -> list[Axes]:
    block.set_facecolor("none")
    block.suptitle(title, x=0.008, ha="left", fontsize=9, fontweight="bold")
    panels = list(block.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        axes.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[max(0, count - COLUMNS) : count]:
        axes.tick_params(labelbottom=True)  # a panel with nothing below it has the axis
    return panels[:count]
