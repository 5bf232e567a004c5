"""Calibration, and which classes the most accurate student confuses, alone and compared with the teacher."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from iakd.reporting.figures import style
from iakd.reporting.results import Comparison, MethodResults, PairComparison

MAX_CLASSES = 20  # of a matrix; with more, the most frequent mistakes are listed instead
MAX_LISTED = 15
ROW_HEIGHT = 0.22  # inches

Floats = NDArray[np.float64]


def draw_calibration(comparison: Comparison) -> Figure:
    """Draw accuracy against confidence for the teacher and the best method of each kind, all seeds together."""
    shown = [[pair.teacher, *pair.best_of_each_kind] for pair in comparison.pairs]
    head = "accuracy against confidence (0–1); the area of a dot is proportional to its number of images"
    titles = [f"{pair.title}: {head}" for pair in comparison.pairs]
    figure, sections = style.small_multiples(titles, [len(methods) for methods in shown])
    for panels, methods in zip(sections, shown, strict=True):
        for axes, results in zip(panels, methods, strict=True):
            _draw_reliability(axes, results)
    return figure


def _draw_reliability(axes: Axes, results: MethodResults) -> None:
    bins = [model.evaluation["calibration"] for model in results.models]
    n = np.array([b["n"] for b in bins], dtype=np.float64)
    total = n.sum(0)
    filled = total > 0
    mean = {
        name: (n * np.array([[v or 0.0 for v in b[name]] for b in bins])).sum(0)[filled] / total[filled]
        for name in ("confidence", "top1")
    }
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8)
    area = 160 * total[filled] / total.sum() + 4
    axes.scatter(
        mean["confidence"], mean["top1"], s=area, color=style.colour(results), alpha=0.8, linewidths=0, clip_on=False
    )
    axes.set_title(f"{style.short(results.label)}\nECE {results.mean('ece').mean:.3f}")
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.04)


def draw_confusion(comparison: Comparison, classes: list[str]) -> Figure:
    """Draw, per pair, the mistakes of the most accurate student, all seeds together, and its accuracy per class."""
    shown = len(classes) if len(classes) <= MAX_CLASSES else MAX_LISTED
    height = ROW_HEIGHT * shown + 0.95
    n = len(comparison.pairs)
    figure = Figure(figsize=(style.WIDTH, height * n), layout="constrained")
    for section, pair in zip(figure.subfigures(n, 1, squeeze=False)[:, 0], comparison.pairs, strict=True):
        best = pair.ranked[0]
        style.title_section(section, f"{pair.title}: mistakes of {style.short(best.label)}, all seeds together")
        left, right = section.subplots(1, 2, width_ratios=[1.25, 1])
        counts = _confusion_counts(best)
        if len(classes) <= MAX_CLASSES:
            _draw_matrix(left, counts, classes)
            left.set_title("% of each true class (row) predicted as (column)\n")
        else:
            _draw_mistakes(left, counts, classes)
            left.set_title("most frequent mistakes, % of the true class\n")
        _draw_per_class(right, pair, best, classes)
    return figure


def _confusion_counts(results: MethodResults) -> Floats:
    """Return the confusion matrix summed over the seeds."""
    return np.sum([model.evaluation["confusion"] for model in results.models], axis=0, dtype=np.float64)


def _percentages(counts: Floats) -> Floats:
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _draw_matrix(axes: Axes, counts: Floats, classes: list[str]) -> None:
    for (row, column), percentage in np.ndenumerate(_percentages(counts)):
        if not counts[row, column]:
            continue
        tint = style.IAKD if row == column else style.OTHER
        depth = 0.9 * percentage / 100 if row == column else min(0.75, 0.06 + percentage / 20)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=tint, alpha=depth, linewidth=0))
        text = f"{percentage:.0f}" if percentage >= 0.95 else "<1"
        ink = style.PAPER if percentage > 50 else style.INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    ticks = range(len(classes))
    names = [style.short(name, 16) for name in classes]
    axes.set_xticks(ticks, names, rotation=0 if max(map(len, names)) < 4 else 45, color=style.INK)
    axes.set_yticks(ticks, names, color=style.INK)
    axes.set_xlim(-0.5, len(classes) - 0.5)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_mistakes(axes: Axes, counts: Floats, classes: list[str]) -> None:
    percentages = _percentages(counts)
    np.fill_diagonal(percentages, 0)
    order = np.argsort(-percentages, axis=None, kind="stable")[:MAX_LISTED]
    mistakes = [np.unravel_index(i, percentages.shape) for i in order]
    names = [
        f"{style.short(classes[true], 16)} → {style.short(classes[predicted], 16)}" for true, predicted in mistakes
    ]
    axes.barh(range(len(mistakes)), [percentages[mistake] for mistake in mistakes], color=style.OTHER, height=0.6)
    axes.set_yticks(range(len(mistakes)), names, color=style.INK)
    axes.set_ylim(len(mistakes) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _draw_per_class(axes: Axes, pair: PairComparison, best: MethodResults, classes: list[str]) -> None:
    student, teacher = (_per_class_mean(results, len(classes)) for results in (best, pair.teacher))
    order = np.arange(len(classes))
    if len(classes) > MAX_CLASSES:
        order = np.argsort(np.nan_to_num(student, nan=np.inf), kind="stable")[:MAX_LISTED]
    for values, results in ((teacher, pair.teacher), (student, best)):
        axes.plot(
            values[order],
            range(len(order)),
            style.marker(results),
            color=style.colour(results),
            label=style.short(results.label, 18),
        )
    axes.set_yticks(range(len(order)), [style.short(classes[i], 16) for i in order], color=style.INK)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("accuracy per class, %\n" if len(classes) <= MAX_CLASSES else "accuracy of the worst classes, %\n")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, borderaxespad=0.1, handletextpad=0.2)


def _per_class_mean(results: MethodResults, classes: int) -> Floats:
    """Return the mean accuracy over the seeds, (classes,); nan for a class without test images."""
    values = [model.evaluation["per_class_top1"] for model in results.models]
    table = np.array([[np.nan if value is None else value for value in row] for row in values])
    assert table.shape[1] == classes
    return table.mean(0)
