"""What the most accurate student mistakes for what, and how its classes fare beside the teacher's."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from iakd.reporting import style
from iakd.reporting.comparison import Comparison, Entry, Pair

MOST = 20  # classes of a matrix; with more, the most frequent mistakes are listed instead
LISTED = 15
ROW = 0.22  # inches


def draw(comparison: Comparison, classes: list[str]) -> Figure:
    """Per pair: mistakes of the most accurate student, all seeds together, and its accuracy class by class."""
    shown = len(classes) if len(classes) <= MOST else LISTED
    height = ROW * shown + 0.95
    n = len(comparison.pairs)
    figure = Figure(figsize=(style.WIDTH, height * n), layout="constrained")
    for block, pair in zip(figure.subfigures(n, 1, squeeze=False)[:, 0], comparison.pairs, strict=True):
        winner = pair.ranked[0]
        block.set_facecolor("none")
        title = f"{pair.title}: mistakes of {style.short(winner.label)}, all seeds together"
        block.suptitle(title, x=0.008, ha="left", fontsize=9, fontweight="bold")
        left, right = block.subplots(1, 2, width_ratios=[1.25, 1])
        counts = _counts(winner)
        if len(classes) <= MOST:
            _matrix(left, counts, classes)
            left.set_title("% of each true class (row) taken for … (column)\n")
        else:
            _mistakes(left, counts, classes)
            left.set_title("the most frequent, % of the true class\n")
        _per_class(right, pair, winner, classes)
    return figure


def _counts(entry: Entry) -> NDArray[np.float64]:
    """The confusion matrix summed over the seeds."""
    return np.sum([result.evaluation["confusion"] for result in entry.results], axis=0, dtype=np.float64)


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _matrix(axes: Axes, counts: NDArray[np.float64], classes: list[str]) -> None:
    for (row, column), share in np.ndenumerate(_shares(counts)):
        if not counts[row, column]:
            continue
        tint = style.IAKD if row == column else style.OTHER
        depth = 0.9 * share / 100 if row == column else min(0.75, 0.06 + share / 20)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=tint, alpha=depth, linewidth=0))
        text = f"{share:.0f}" if share >= 0.95 else "<1"
        ink = style.PAPER if share > 50 else style.INK
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


def _mistakes(axes: Axes, counts: NDArray[np.float64], classes: list[str]) -> None:
    shares = _shares(counts)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:LISTED]
    pairs = [np.unravel_index(i, shares.shape) for i in order]
    names = [f"{style.short(classes[true], 16)} → {style.short(classes[taken], 16)}" for true, taken in pairs]
    axes.barh(range(len(pairs)), [shares[pair] for pair in pairs], color=style.OTHER, height=0.6)
    axes.set_yticks(range(len(pairs)), names, color=style.INK)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _per_class(axes: Axes, pair: Pair, winner: Entry, classes: list[str]) -> None:
    ours, teachers = (_per_class_mean(entry, len(classes)) for entry in (winner, pair.teacher))
    order = np.arange(len(classes))
    if len(classes) > MOST:
        order = np.argsort(np.nan_to_num(ours, nan=np.inf), kind="stable")[:LISTED]
    for values, entry in ((teachers, pair.teacher), (ours, winner)):
        axes.plot(
            values[order],
            range(len(order)),
            style.marker(entry),
            color=style.colour(entry),
            label=style.short(entry.label, 18),
        )
    axes.set_yticks(range(len(order)), [style.short(classes[i], 16) for i in order], color=style.INK)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("accuracy, % of each class\n" if len(classes) <= MOST else "worst classes, accuracy (%)\n")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, borderaxespad=0.1, handletextpad=0.2)


def _per_class_mean(entry: Entry, classes: int) -> NDArray[np.float64]:
    """Mean over the seeds, (classes,); nan for a class that has no test image."""
    values = [result.evaluation["per_class_top1"] for result in entry.results]
    table = np.array([[np.nan if value is None else value for value in row] for row in values])
    assert table.shape[1] == classes
    return table.mean(0)
