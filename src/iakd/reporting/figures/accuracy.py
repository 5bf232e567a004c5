"""Test accuracy of every method and its gains over the references: a row per method, the best at the top."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iakd.reporting import formatting
from iakd.reporting.figures import style
from iakd.reporting.results import Comparison, MethodResults, PairComparison

ROW_HEIGHT = 0.24  # inches


def draw_accuracy(comparison: Comparison) -> Figure:
    """Draw, per pair, a panel with accuracies (seeds, mean ± std) and one per reference (gains with intervals)."""
    columns = 1 + len(comparison.references)
    heights = [ROW_HEIGHT * len(_rows(pair)) + 0.75 for pair in comparison.pairs]
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 0.1), layout="constrained")
    grid = figure.subplots(
        len(comparison.pairs),
        columns,
        squeeze=False,
        sharey="row",
        gridspec_kw={"height_ratios": heights, "width_ratios": [1.2, *[1.0] * (columns - 1)]},
    )
    for axes, pair in zip(grid, comparison.pairs, strict=True):
        _pair(axes, pair, comparison)
    return figure


def _pair(axes: Sequence[Axes], pair: PairComparison, comparison: Comparison) -> None:
    rows = _rows(pair)
    methods = {y: row for y, row in enumerate(rows) if isinstance(row, MethodResults)}
    accuracy = axes[0]
    names = [style.short(row.label, 28) if isinstance(row, MethodResults) else row for row in rows]
    accuracy.set_yticks(range(len(rows)), names, color=style.INK)
    for label, row in zip(accuracy.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set(color=style.MUTED, fontsize=7.5)
    accuracy.set_ylim(len(rows) - 0.4, -0.6)
    values = [value for results in methods.values() for value in results.top1_by_seed().values()]
    _set_axis(accuracy, style.fit_axis([results.top1.mean for results in methods.values()], values, ticks=5))
    for y, results in methods.items():
        _accuracy(accuracy, y, results)
    accuracy.set_title(f"{pair.title}\n{formatting.TOP1} (line: ± std; circles: seeds)", fontsize=8)
    level = formatting.percent(comparison.params.report.confidence)
    for panel, reference in zip(axes[1:], comparison.references, strict=True):
        gains = [results.gains[reference] for results in methods.values() if reference in results.gains]
        ends = [end for gain in gains for end in (gain.low, gain.high) if end is not None]
        _set_axis(panel, style.fit_axis([0.0, *(gain.mean for gain in gains)], ends))
        panel.axvline(0, color=style.MUTED, linewidth=1)
        for y, results in methods.items():
            _gain(panel, y, results, reference)
        panel.set_title(
            f"gain over {style.short(reference)}, points\n({level} interval; grey: not significant)", fontsize=8
        )


def _rows(pair: PairComparison) -> list[MethodResults | str]:
    """Return the rows: the teacher, then the methods, with a title for each of several groups."""
    rows: list[MethodResults | str] = [pair.teacher]
    for title, methods in pair.groups:
        rows += [title, *methods] if title else methods
    return rows


def _set_axis(axes: Axes, limits: style.AxisRange) -> None:
    axes.set_xlim(limits.low, limits.high)
    axes.set_xticks(limits.ticks)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _accuracy(axes: Axes, y: int, results: MethodResults) -> None:
    tint, top1 = style.colour(results), results.top1
    low, high = axes.get_xlim()
    if top1.std is not None:
        axes.plot([top1.mean - top1.std, top1.mean + top1.std], [y, y], color=tint, linewidth=2)
        seeds = list(results.top1_by_seed().values())
        axes.plot(
            seeds,
            [y] * len(seeds),
            "o",
            markersize=3.2,
            markerfacecolor="none",
            markeredgecolor=tint,
            alpha=0.7,
        )
    axes.plot(top1.mean, y, style.marker(results), color=tint, markersize=6)
    if not low <= top1.mean <= high:  # it failed in training: print the value instead of stretching the axis
        left = top1.mean < low
        mean = formatting.number(top1.mean, 1)
        text = f"◂ {mean}" if left else f"{mean} ▸"
        axes.text(low if left else high, y, text, color=tint, va="center", ha="left" if left else "right")


def _gain(axes: Axes, y: int, results: MethodResults, reference: str) -> None:
    gain = results.gains.get(reference)
    if gain is None:
        return
    tint = style.colour(results) if gain.significant else style.MUTED
    if gain.low is not None and gain.high is not None:
        axes.plot([gain.low, gain.high], [y, y], color=tint, linewidth=2, solid_capstyle="butt")
    axes.plot(gain.mean, y, style.marker(results), color=tint, markersize=6)
