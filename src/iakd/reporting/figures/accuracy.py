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
    heights = [ROW * (len(pair.entries) + 1) + 0.75 for pair in comparison.pairs]
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
    entries = [pair.teacher, *pair.ranked]
    first = axes[0]
    first.set_yticks(range(len(entries)), [style.short(entry.label, 28) for entry in entries], color=style.INK)
    first.set_ylim(len(entries) - 0.4, -0.6)
    values = [value for entry in entries for value in entry.by_seed().values()]
    _scaled(first, scale.fit([entry.top1.mean for entry in entries], values, ticks=5))
    for y, entry in enumerate(entries):
        _accuracy(first, y, entry)
    first.set_title(f"{pair.title}\ntest accuracy, % (line: ± std; rings: seeds)")
    level = words.percent(comparison.params.report.confidence)
    for panel, reference in zip(axes[1:], comparison.references, strict=True):
        gains = [entry.gains[reference] for entry in entries if reference in entry.gains]
        ends = [end for gain in gains for end in (gain.low, gain.high) if end is not None]
        _scaled(panel, scale.fit([0.0, *(gain.mean for gain in gains)], ends))
        panel.axvline(0, color=style.MUTED, linewidth=1)
        for y, entry in enumerate(entries):
            _gain(panel, y, entry, reference)
        panel.set_title(f"gain over {reference}, points\n({level} interval; grey: may be chance)")


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
