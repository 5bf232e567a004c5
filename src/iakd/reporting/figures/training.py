"""What the histories of the trainings show: learning curves, and swap probabilities, a small panel per method."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from iakd.reporting import formatting
from iakd.reporting.figures import style
from iakd.reporting.results import Comparison, MethodResults, PairComparison

LINE_STYLES = {"dashed": "--", "dotted": ":", "dash-dotted": "-."}  # of the references
MAX_DOTS = 20  # of a block: a dot averages over some epochs, because one epoch has few draws
MAX_BLOCKS = 6  # shown in a panel

Floats = NDArray[np.float64]
AccuracyCurves = tuple[Floats, Floats]  # epochs (E,), validation accuracy (seeds, E)


def draw_learning_curves(comparison: Comparison) -> Figure:
    """Draw validation accuracy over epochs: mean and range over the seeds; means of references and peers."""
    lines = "; ".join(f"{name}: {label}" for name, label in zip(LINE_STYLES, comparison.references, strict=False))
    head = f"{formatting.VAL_TOP1}, over epochs" + (f"; {lines}" if lines else "")
    titles = [f"{pair.title}: {head}" for pair in comparison.pairs]
    figure, sections = style.small_multiples(titles, [len(pair.methods) for pair in comparison.pairs])
    for panels, pair in zip(sections, comparison.pairs, strict=True):
        _draw_pair(panels, pair, comparison.references)
    return figure


def _draw_pair(panels: list[Axes], pair: PairComparison, references: list[str]) -> None:
    curves = {results.label: _accuracy_curves(results) for results in pair.methods}
    peers = {
        results.label: _accuracy_curves(results, "peer_val_top1") for results in pair.methods if _has_peer(results)
    }
    bottom, top = _window([*curves.values(), *peers.values()])
    for axes, results in zip(panels, pair.in_display_order, strict=True):
        for reference, line_style in zip(references, LINE_STYLES.values(), strict=False):
            if reference != results.label:
                epochs, values = curves[reference]
                axes.plot(epochs, values.mean(0), line_style, color=style.MUTED, linewidth=0.9)
        epochs, values = curves[results.label]
        tint, end = style.colour(results), float(values[:, -1].mean())
        axes.fill_between(epochs, values.min(0), values.max(0), color=tint, alpha=0.22, linewidth=0)
        axes.plot(epochs, values.mean(0), color=tint)
        notes = [f"▾ ends at {formatting.number(end, 1)}"] if end < bottom else []
        if results.label in peers:
            epochs, values = peers[results.label]
            axes.plot(epochs, values.mean(0), color=style.OTHER, linewidth=0.9)
            notes.append(f"thin: its peer, ends at {formatting.number(float(values[:, -1].mean()), 1)}")
        if notes:
            axes.text(0.98, 0.04, "\n".join(notes), transform=axes.transAxes, ha="right", color=tint)
        axes.set_title(style.short(results.label))
        axes.set_xlim(0, max(float(e[-1]) for e, _ in curves.values()))
    panels[0].set_ylim(bottom, top)


def _window(curves: list[AccuracyCurves]) -> tuple[float, float]:
    """Return the range of accuracies to show: first epochs and failed trainings may be below it."""
    ends = [float(values[:, -1].mean()) for _, values in curves]
    limits = style.fit_axis(ends, [])
    shown = np.concatenate([v.ravel() for (_, v), end in zip(curves, ends, strict=True) if not limits.outside(end)])
    return float(np.quantile(shown, 0.1)) - 2, float(shown.max()) + 1


def _has_peer(results: MethodResults) -> bool:
    """Return whether a second network was trained and validated with the students."""
    return all("peer_val_top1" in model.metrics for model in results.models)


def _accuracy_curves(results: MethodResults, column: str = "val_top1") -> AccuracyCurves:
    """Read the validated epochs of a method, which are the same for all seeds."""
    histories = results.histories
    points = [[(r["epoch"], r[column]) for r in rows if r.get(column) is not None] for rows in histories]
    table = np.array(points, dtype=np.float64)
    return table[0, :, 0], table[:, :, 1]


def draw_swap_probabilities(comparison: Comparison) -> Figure:
    """Draw, per method with swapping, each block's planned keep probability (line) and the fraction drawn (dots)."""
    pairs = [
        (pair, [results for results in pair.in_display_order if results.method and results.method.swaps])
        for pair in comparison.pairs
    ]
    pairs = [(pair, methods) for pair, methods in pairs if methods]
    if not pairs:
        return style.placeholder("No method of this experiment swaps blocks.")
    head = "fraction of steps in which the student's block is kept, over epochs; lines: planned, dots: drawn"
    titles = [f"{pair.title}: {head}" for pair, _ in pairs]
    figure, sections = style.small_multiples(titles, [len(methods) for _, methods in pairs])
    for panels, (_, methods) in zip(sections, pairs, strict=True):
        for axes, results in zip(panels, methods, strict=True):
            _draw_swaps(axes, results)
        panels[0].set_ylim(-0.04, 1.06)
        panels[0].set_yticks([0, 0.5, 1])
    return figure


def _draw_swaps(axes: Axes, results: MethodResults) -> None:
    epochs, planned, drawn = _swap_history(results)
    shown = np.unique(np.linspace(0, planned.shape[1] - 1, MAX_BLOCKS).round().astype(int))
    tints = style.block_colours(len(shown))
    equal = bool(np.allclose(planned, planned[:, :1]))
    parts = np.array_split(np.arange(len(epochs)), min(MAX_DOTS, len(epochs)))
    middle = np.array([epochs[part].mean() for part in parts])
    for block, tint in zip(shown, tints, strict=True):
        axes.plot(epochs, planned[:, block], color=style.INK if equal else tint, linewidth=1.2)
        _draw_dots(axes, middle, np.array([drawn[part, block].mean() for part in parts]), tint)
    axes.set_title(style.short(results.label))
    axes.set_xlim(0, epochs[-1])
    style.label_blocks(axes, planned.shape[1])


def _draw_dots(axes: Axes, x: Floats, y: Floats, tint: str) -> None:
    """Draw dots as a single path of strokes of length zero, so that thousands of them take few bytes."""
    points = np.repeat(np.column_stack([x, y]), 2, axis=0)
    path = Path(points, [Path.MOVETO, Path.LINETO] * len(x))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=tint, linewidth=2.6, capstyle="round", alpha=0.75))


def _swap_history(results: MethodResults) -> tuple[Floats, Floats, Floats]:
    """Read epochs (E,), planned p (E, blocks) of the first seed, and fractions drawn (E, blocks), mean over seeds."""
    tables = results.histories
    blocks = sum(bool(re.fullmatch(r"p_planned_\d+", name)) for name in tables[0][0])
    values = {
        kind: np.array([[[row[f"p_{kind}_{i}"] for i in range(blocks)] for row in rows] for rows in tables], float)
        for kind in ("planned", "drawn")
    }
    epochs = np.array([row["epoch"] for row in tables[0]], dtype=np.float64)
    return epochs, values["planned"][0], values["drawn"].mean(0)
