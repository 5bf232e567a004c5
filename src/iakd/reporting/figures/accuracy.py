"""Test accuracy of every method, and its gains over the references: a row per method, the best on top."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iakd.reporting import scale, style, words
from iakd.reporting.comparison import Comparison, Entry, Pair

ROW = 0.24  # inches


def draw(comparison: Comparison) -> Figure:
    """A block of panels per pair: accuracy (seeds, mean ± std), then a panel per reference (gain with interval)."""
    columns = 1 + len(comparison.references)
    heights = [ROW * len(_rows(pair)) + 0.75 for pair in comparison.pairs]
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


def _pair(axes: Sequence[Axes], pair: Pair, comparison: Comparison) -> None:
    rows = _rows(pair)
    entries = {y: row for y, row in enumerate(rows) if isinstance(row, Entry)}
    first = axes[0]
    names = [style.short(row.label, 28) if isinstance(row, Entry) else row for row in rows]
    first.set_yticks(range(len(rows)), names, color=style.INK)
    for label, row in zip(first.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set(color=style.MUTED, fontsize=7.5)
    first.set_ylim(len(rows) - 0.4, -0.6)
    values = [value for entry in entries.values() for value in entry.by_seed().values()]
    _scaled(first, scale.fit([entry.top1.mean for entry in entries.values()], values, ticks=5))
    for y, entry in entries.items():
        _accuracy(first, y, entry)
    first.set_title(f"{pair.title}\ntest accuracy, % (line: ± std; rings: seeds)", fontsize=8)
    level = words.percent(comparison.params.report.confidence)
    for panel, reference in zip(axes[1:], comparison.references, strict=True):
        gains = [entry.gains[reference] for entry in entries.values() if reference in entry.gains]
        ends = [end for gain in gains for end in (gain.low, gain.high) if end is not None]
        _scaled(panel, scale.fit([0.0, *(gain.mean for gain in gains)], ends))
        panel.axvline(0, color=style.MUTED, linewidth=1)
        for y, entry in entries.items():
            _gain(panel, y, entry, reference)
        panel.set_title(
            f"gain over {style.short(reference)}, points\n({level} interval; grey: not certain)", fontsize=8
        )


def _rows(pair: Pair) -> list[Entry | str]:
    """What stands in the rows: the teacher, then the methods, with titles of their groups where there are several."""
    rows: list[Entry | str] = [pair.teacher]
    for title, entries in pair.groups:
        rows += [title, *entries] if title else entries
    return rows


def _scaled(axes: Axes, limits: scale.Scale) -> None:
    axes.set_xlim(limits.low, limits.high)
    axes.set_xticks(limits.ticks)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _accuracy(axes: Axes, y: int, entry: Entry) -> None:
    tint, top1 = style.colour(entry), entry.top1
    low, high = axes.get_xlim()
    if top1.std is not None:
        axes.plot([top1.mean - top1.std, top1.mean + top1.std], [y, y], color=tint, linewidth=2)
        seeds = list(entry.by_seed().values())
        axes.plot(
            seeds,
            [y] * len(seeds),
            "o",
            markersize=3.2,
            markerfacecolor="none",
            markeredgecolor=tint,
            alpha=0.7,
        )
    axes.plot(top1.mean, y, style.marker(entry), color=tint, markersize=6)
    if not low <= top1.mean <= high:  # failed in training: say so instead of stretching the axis
        left = top1.mean < low
        text = f"◂ {top1.mean:.1f}" if left else f"{top1.mean:.1f} ▸"
        axes.text(low if left else high, y, text, color=tint, va="center", ha="left" if left else "right")


def _gain(axes: Axes, y: int, entry: Entry, reference: str) -> None:
    gain = entry.gains.get(reference)
    if gain is None:
        return
    tint = style.colour(entry) if gain.certain else style.MUTED
    if gain.low is not None and gain.high is not None:
        axes.plot([gain.low, gain.high], [y, y], color=tint, linewidth=2, solid_capstyle="butt")
    axes.plot(gain.mean, y, style.marker(entry), color=tint, markersize=6)
