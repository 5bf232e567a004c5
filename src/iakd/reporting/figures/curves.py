"""Learning curves: a small panel per method, so that twenty-five of them can still be told apart."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from iakd.experiment.run_dir import HISTORY, read_history
from iakd.reporting import scale, style, words
from iakd.reporting.comparison import Comparison, Entry, Pair
from iakd.reporting.figures.panels import small_multiples

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # epochs (E,), validation accuracy (seeds, E)
DASHES = ("--", ":", "-.")
NAMES = ("dashed", "dotted", "dash-dotted")


def draw(comparison: Comparison) -> Figure:
    """Validation accuracy over the epochs: the mean over the seeds, the band between the lowest and the highest, and
    the references for comparison.
    """
    lines = "; ".join(f"{name}: {label}" for name, label in zip(NAMES, comparison.references, strict=False))
    head = "validation accuracy (%) over epochs" + (f"; {lines}" if lines else "")
    titles = [f"{pair.title}: {head}" for pair in comparison.pairs]
    figure, blocks = small_multiples(titles, [len(pair.entries) for pair in comparison.pairs])
    for panels, pair in zip(blocks, comparison.pairs, strict=True):
        _pair(panels, pair, comparison.references)
    return figure


def _pair(panels: list[Axes], pair: Pair, references: list[str]) -> None:
    curves = {entry.label: _read(entry) for entry in pair.entries}
    bottom, top = _window(list(curves.values()))
    for axes, entry in zip(panels, pair.shown, strict=True):
        for reference, dashes in zip(references, DASHES, strict=False):
            if reference != entry.label:
                epochs, values = curves[reference]
                axes.plot(epochs, values.mean(0), dashes, color=style.MUTED, linewidth=0.9)
        epochs, values = curves[entry.label]
        tint, end = style.colour(entry), float(values[:, -1].mean())
        axes.fill_between(epochs, values.min(0), values.max(0), color=tint, alpha=0.22, linewidth=0)
        axes.plot(epochs, values.mean(0), color=tint)
        if end < bottom:
            text = f"▾ ends at {words.number(end, 1)}"
            axes.text(0.98, 0.04, text, transform=axes.transAxes, ha="right", color=tint)
        axes.set_title(style.short(entry.label))
        axes.set_xlim(0, max(float(e[-1]) for e, _ in curves.values()))
    panels[0].set_ylim(bottom, top)


def _window(curves: list[Curve]) -> tuple[float, float]:
    """The accuracies worth showing: the first epochs, and the whole of a failed training, may lie below."""
    ends = [float(values[:, -1].mean()) for _, values in curves]
    limits = scale.fit(ends, [])
    shown = np.concatenate([v.ravel() for (_, v), end in zip(curves, ends, strict=True) if not limits.outside(end)])
    return float(np.quantile(shown, 0.1)) - 2, float(shown.max()) + 1


def _read(entry: Entry) -> Curve:
    """The validated epochs of a method; seeds share their recipe, and so their epochs."""
    histories = [read_history(result.folder / HISTORY) for result in entry.results]
    points = [[(r["epoch"], r["val_top1"]) for r in rows if r.get("val_top1") is not None] for rows in histories]
    table = np.array(points, dtype=np.float64)
    return table[0, :, 0], table[:, :, 1]
