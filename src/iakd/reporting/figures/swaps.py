"""The swap probability that was planned for each block, and the share of steps in which it really stayed."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from iakd.experiment.run_dir import HISTORY, read_history
from iakd.reporting import style
from iakd.reporting.comparison import Comparison, Entry
from iakd.reporting.figures.panels import small_multiples

BINS = 20  # dots of a line: single epochs have few draws
SHOWN = 6  # blocks of a panel, at most
Floats = NDArray[np.float64]


def draw(comparison: Comparison) -> Figure:
    """A panel per method that swaps: planned p of each block as lines, the share drawn as dots."""
    swapping = [(pair, [entry for entry in pair.shown if entry.is_iakd]) for pair in comparison.pairs]
    swapping = [(pair, entries) for pair, entries in swapping if entries]
    if not swapping:
        return style.placeholder("No method of this experiment swaps blocks.")
    head = "share of steps in which the student's block stays, over epochs; lines: planned, dots: drawn"
    titles = [f"{pair.title}: {head}" for pair, _ in swapping]
    figure, blocks = small_multiples(titles, [len(entries) for _, entries in swapping])
    for panels, (_, entries) in zip(blocks, swapping, strict=True):
        for axes, entry in zip(panels, entries, strict=True):
            _panel(axes, entry)
        panels[0].set_ylim(-0.04, 1.06)
        panels[0].set_yticks([0, 0.5, 1])
    return figure


def _panel(axes: Axes, entry: Entry) -> None:
    epochs, planned, drawn = _read(entry)
    chosen = np.unique(np.linspace(0, planned.shape[1] - 1, SHOWN).round().astype(int))
    tints = style.shades(len(chosen))
    alike = bool(np.allclose(planned, planned[:, :1]))
    parts = np.array_split(np.arange(len(epochs)), min(BINS, len(epochs)))
    middle = np.array([epochs[part].mean() for part in parts])
    for block, tint in zip(chosen, tints, strict=True):
        axes.plot(epochs, planned[:, block], color=style.INK if alike else tint, linewidth=1.2)
        _dots(axes, middle, np.array([drawn[part, block].mean() for part in parts]), tint)
    axes.set_title(style.short(entry.label))
    axes.set_xlim(0, epochs[-1])
    style.name_blocks(axes, planned.shape[1])


def _dots(axes: Axes, x: Floats, y: Floats, tint: str) -> None:
    """Dots as one path of strokes without length, which keeps a page with thousands of them small."""
    points = np.repeat(np.column_stack([x, y]), 2, axis=0)
    path = Path(points, [Path.MOVETO, Path.LINETO] * len(x))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=tint, linewidth=2.6, capstyle="round", alpha=0.75))


def _read(entry: Entry) -> tuple[Floats, Floats, Floats]:
    """Epochs (E,), planned p (E, blocks) of the first seed, drawn shares (E, blocks) averaged over the seeds."""
    tables = [read_history(result.folder / HISTORY) for result in entry.results]
    blocks = sum(bool(re.fullmatch(r"p_planned_\d+", name)) for name in tables[0][0])
    values = {
        kind: np.array([[[row[f"p_{kind}_{i}"] for i in range(blocks)] for row in rows] for rows in tables], float)
        for kind in ("planned", "drawn")
    }
    epochs = np.array([row["epoch"] for row in tables[0]], dtype=np.float64)
    return epochs, values["planned"][0], values["drawn"].mean(0)
