"""What swapping itself added: a row per method with swaps and counterpart without, the difference with its interval."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iakd.reporting import formatting
from iakd.reporting.figures import style
from iakd.reporting.results import Comparison
from iakd.reporting.swapping import Added, by_counterpart

ROW_HEIGHT = 0.26  # inches


def draw_added(comparison: Comparison) -> Figure:
    """Draw a panel per pair; filled markers compare at equal epochs, hollow ones at equal training time only."""
    panels = [(pair.title, by_counterpart(comparison.swap_effects[pair.name])) for pair in comparison.pairs]
    panels = [(title, rows) for title, rows in panels if rows]
    if not panels:
        return style.placeholder("No method that swaps blocks has a counterpart without swaps in this experiment.")
    heights = [ROW_HEIGHT * len(rows) + 0.75 for _, rows in panels]
    figure = Figure(figsize=(style.WIDTH, sum(heights) + 0.1), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    level = formatting.percent(comparison.params.report.confidence)
    for axes, (title, rows) in zip(grid, panels, strict=True):
        _draw_panel(axes, rows)
        axes.set_title(
            f"{title}\nwhat swapping added, points of test accuracy ({level} interval; grey: not significant)",
            fontsize=8,
        )
    return figure


def _draw_panel(axes: Axes, rows: list[Added]) -> None:
    ends = [end for row in rows for end in (row.difference.low, row.difference.high) if end is not None]
    limits = style.fit_axis([0.0, *(row.difference.mean for row in rows)], ends)
    axes.set_xlim(limits.low, limits.high)
    axes.set_xticks(limits.ticks)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=style.MUTED, linewidth=1)
    first = {row.method: row for row in reversed(rows)}
    labels = [style.short(row.method, 28) if row is first[row.method] else "" for row in rows]
    beside = axes.twinx()
    beside.set_frame_on(False)
    beside.grid(visible=False)
    for side, texts, tint in ((axes, labels, style.INK), (beside, [_describe(row) for row in rows], style.MUTED)):
        side.set_ylim(len(rows) - 0.4, -0.6)
        side.set_yticks(range(len(rows)), texts, color=tint)
        side.tick_params(axis="y", length=0)
    for y, row in enumerate(rows):
        _draw_difference(axes, y, row, limits)


def _describe(row: Added) -> str:
    time = f", {formatting.ratio(row.time_ratio)} its time" if row.time_ratio is not None else ""
    return f"over {style.short(row.reference, 32)}: {formatting.conditions(row.conditions)}{time}"


def _draw_difference(axes: Axes, y: int, row: Added, limits: style.AxisRange) -> None:
    difference = row.difference
    tint = style.IAKD if difference.significant else style.MUTED
    if difference.low is not None and difference.high is not None:
        axes.plot([difference.low, difference.high], [y, y], color=tint, linewidth=2, solid_capstyle="butt")
    marker = "^" if row.conditions[0].startswith("tuned") else "o"
    fill = tint if any(condition.endswith("epochs") for condition in row.conditions) else style.PAPER
    if limits.outside(difference.mean):  # print the value instead of stretching the axis
        left = difference.mean < limits.low
        mean = formatting.number(difference.mean, 1)
        text = f"◂ {mean}" if left else f"{mean} ▸"
        axes.text(limits.low if left else limits.high, y, text, color=tint, va="center", ha="left" if left else "right")
    else:
        axes.plot(difference.mean, y, marker, color=tint, markerfacecolor=fill, markeredgewidth=1.5, markersize=6)
