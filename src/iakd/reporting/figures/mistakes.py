"""Calibration, and which classes the most accurate student confuses, alone and compared with the teacher."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from iakd.reporting import formatting
from iakd.reporting.figures import style
from iakd.reporting.results import Comparison, Floats, MethodResults, PairComparison, most_frequent, percentages

MAX_CLASSES = 20  # of a matrix; with more, the most frequent mistakes are listed instead
MAX_LISTED = 15
ROW_HEIGHT, LEAST_HEIGHT, MATRIX_WIDTH = 0.24, 1.3, 4.0  # inches
CHARACTER, SLOPE = 0.075, 0.71  # inches, the width of a character; the sine of 45 degrees


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
    axes.set_title(
        f"{style.short(results.label)}\nECE {formatting.number(results.mean('ece').mean, formatting.ECE_DIGITS)}"
    )
    axes.set_xlim(0, 1.04)
    axes.set_ylim(0, 1.04)


def draw_confusion(comparison: Comparison, classes: list[str]) -> Figure:
    """Draw, per pair, the mistakes of the most accurate student, all seeds together, and its accuracy per class."""
    listed = len(classes) > MAX_CLASSES
    names = style.short_all(classes)
    rows = min(len(classes), MAX_LISTED) if listed else len(classes)
    upright = max(map(len, names)) * CHARACTER < MATRIX_WIDTH / len(classes)  # all names fit below their columns
    below = 0 if listed or upright else max(map(len, names)) * CHARACTER * SLOPE
    height = max(ROW_HEIGHT * rows, LEAST_HEIGHT) + below + 0.95
    n = len(comparison.pairs)
    figure = Figure(figsize=(style.WIDTH, height * n), layout="constrained")
    for section, pair in zip(figure.subfigures(n, 1, squeeze=False)[:, 0], comparison.pairs, strict=True):
        best = pair.ranked[0]
        style.title_section(section, f"{pair.title}: mistakes of {style.short(best.label)}, all seeds together")
        left, right = section.subplots(1, 2, width_ratios=[1.25, 1])
        counts = best.confusion
        if listed:
            _draw_mistakes(left, counts, names)
            left.set_title("most frequent mistakes, test images (% of the true class)\n")
        else:
            _draw_matrix(left, counts, names, upright)
            left.set_title("% of each true class (row) predicted as (column)\n")
        _draw_per_class(right, pair, best, names, listed)
    return figure


def _draw_matrix(axes: Axes, counts: Floats, names: list[str], upright: bool) -> None:
    for (row, column), percentage in np.ndenumerate(percentages(counts)):
        if not counts[row, column]:
            continue
        tint = style.IAKD if row == column else style.OTHER
        depth = 0.9 * percentage / 100 if row == column else min(0.75, 0.06 + percentage / 20)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=tint, alpha=depth, linewidth=0))
        text = f"{percentage:.0f}" if percentage >= 0.95 else "<1"
        ink = style.PAPER if row == column and percentage > 50 else style.INK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    ticks = range(len(names))
    slanted: dict[str, Any] = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, color=style.INK, **slanted)
    axes.set_yticks(ticks, names, color=style.INK)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_mistakes(axes: Axes, counts: Floats, names: list[str]) -> None:
    mistakes = most_frequent(counts)[:MAX_LISTED]
    shares = percentages(counts)
    values = [counts[mistake] for mistake in mistakes]
    axes.barh(range(len(mistakes)), values, color=style.OTHER, height=0.6)
    for y, mistake in enumerate(mistakes):
        axes.annotate(
            f"{counts[mistake]:.0f} ({shares[mistake]:.0f} %)",
            (counts[mistake], y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=style.MUTED,
        )
    axes.set_yticks(
        range(len(mistakes)), [f"{names[true]} → {names[found]}" for true, found in mistakes], color=style.INK
    )
    axes.set_ylim(max(len(mistakes), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max([*values, 1]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    if not mistakes:
        axes.text(0.5, 0.5, "no mistakes", transform=axes.transAxes, ha="center", color=style.MUTED)


def _draw_per_class(axes: Axes, pair: PairComparison, best: MethodResults, names: list[str], listed: bool) -> None:
    student, teacher = best.per_class, pair.teacher.per_class
    order = np.arange(len(names))
    if listed:
        order = np.argsort(np.nan_to_num(student, nan=np.inf), kind="stable")[:MAX_LISTED]
    for values, results in ((teacher, pair.teacher), (student, best)):
        axes.plot(
            values[order],
            range(len(order)),
            style.marker(results),
            color=style.colour(results),
            label=style.short(results.label, 18),
            clip_on=False,
        )
    axes.set_yticks(range(len(order)), [names[i] for i in order], color=style.INK)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("accuracy of the worst classes, %\n" if listed else "accuracy per class, %\n")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, borderaxespad=0.1, handletextpad=0.2)
