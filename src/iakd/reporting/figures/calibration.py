"""Whether a model is as often right as it is sure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iakd.reporting import style
from iakd.reporting.comparison import Comparison, Entry
from iakd.reporting.figures.panels import small_multiples
from iakd.reporting.verdict import best


def draw(comparison: Comparison) -> Figure:
    """Accuracy against confidence of the teacher and of the best of each kind of method, over all seeds together."""
    chosen = [[pair.teacher, *best(pair)] for pair in comparison.pairs]
    head = "accuracy against confidence (0–1); the area of a dot is its share of the images"
    figure, blocks = small_multiples([f"{p.title}: {head}" for p in comparison.pairs], [len(c) for c in chosen])
    for panels, entries in zip(blocks, chosen, strict=True):
        for axes, entry in zip(panels, entries, strict=True):
            _panel(axes, entry)
    return figure


def _panel(axes: Axes, entry: Entry) -> None:
    bins = [result.evaluation["calibration"] for result in entry.results]
    n = np.array([b["n"] for b in bins], dtype=np.float64)
    total = n.sum(0)
    filled = total > 0
    mean = {
        name: (n * np.array([[v or 0.0 for v in b[name]] for b in bins])).sum(0)[filled] / total[filled]
        for name in ("confidence", "top1")
    }
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8)
    area = 160 * total[filled] / total.sum() + 4
    axes.scatter(mean["confidence"], mean["top1"], s=area, color=style.colour(entry), alpha=0.8, linewidths=0)
    axes.set_title(f"{style.short(entry.label)}\nECE {entry.mean('ece').mean:.3f}")
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.04)
