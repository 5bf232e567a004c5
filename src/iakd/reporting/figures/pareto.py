"""Accuracy against latency, size and cost: a dot per method and precision, and those that no other one beats."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from iakd.reporting import formatting
from iakd.reporting.exported import Candidate, Exports, pareto_front
from iakd.reporting.figures import style

HEIGHT, HEIGHT_OF_LABEL = 3.0, 0.12  # inches
ROOM = 0.15  # for labels above, as a part of the axis
LABEL = 40  # characters
COSTS = (
    ("latency_ms", 1.0, "ms per image in ONNX Runtime, median"),
    ("bytes", 1e6, "MB of the ONNX file"),
    ("training_seconds", 1.0, "{} of training, one seed, median"),
    ("macs", 1e6, "millions of MACs per image"),
)


def draw_pareto(exports: Exports) -> Figure:
    """Draw a panel for each cost, both with the same accuracies.

    Labelled are what no other one beats, with ± std over the seeds, each teacher, and of each other network and
    precision the best method.
    """
    height = HEIGHT + HEIGHT_OF_LABEL * max(0, len(_best(exports.candidates)) - 4)
    figure = Figure(figsize=(style.WIDTH, 2 * height), layout="constrained")
    means = [candidate.top1 for candidate in exports.candidates]
    limits = style.fit_axis(means, [], ticks=6)
    labels = []
    for axes, (cost, unit, title) in zip(figure.subplots(2, 2, sharey=True).ravel(), COSTS, strict=True):
        known = [candidate for candidate in exports.candidates if getattr(candidate, cost)]
        if cost == "training_seconds":
            unit, name = _unit_of_time([candidate.training_seconds or 0.0 for candidate in known])
            title = title.format(name)
        labels.append(_draw_panel(axes, known, cost, unit, limits))
        axes.set_xlabel(title)
    for axes in figure.axes[::2]:
        axes.set_ylabel(formatting.TOP1)
    figure.axes[0].set_ylim(limits.low, limits.high + ROOM * (limits.high - limits.low))
    figure.axes[0].set_yticks(limits.ticks)
    for axes, of_panel in zip(figure.axes, labels, strict=True):
        style.place_labels(axes, of_panel)
    return figure


def _unit_of_time(seconds: list[float]) -> tuple[float, str]:
    """Return the unit in which the longest of some times is a number of readable size, in seconds, and its name."""
    longest = max(seconds, default=0.0)
    return next(
        ((unit, name) for unit, name in ((3600.0, "hours"), (60.0, "minutes")) if longest > 3 * unit), (1.0, "seconds")
    )


def _best(candidates: list[Candidate]) -> list[Candidate]:
    """Return the most accurate candidate of each network and precision."""
    best: dict[int, Candidate] = {}
    for candidate in candidates:
        of = id(candidate.measured)
        if of not in best or candidate.top1 > best[of].top1:
            best[of] = candidate
    return list(best.values())


def _draw_panel(
    axes: Axes, candidates: list[Candidate], cost: str, unit: float, limits: style.AxisRange
) -> list[style.Label]:
    """Draw the dots and return their labels, those that matter most first."""
    front = pareto_front(candidates, cost)
    axes.set_xscale("log")
    x, y = [getattr(candidate, cost) / unit for candidate in front], [candidate.top1 for candidate in front]
    axes.plot([*x[:1], *np.repeat(x[1:], 2)], [*np.repeat(y[:-1], 2), *y[-1:]], color=style.MUTED, linewidth=1)
    for candidate in sorted(candidates, key=lambda candidate: candidate in front):  # the front above the others
        tint, at = style.VARIABLES[candidate.kind], getattr(candidate, cost) / unit
        if candidate in front and candidate.std:
            ends = [candidate.top1 - candidate.std, candidate.top1 + candidate.std]
            axes.plot([at, at], ends, color=tint, linewidth=1.2)
        below = candidate.top1 < limits.low  # it failed in training: shown at the edge
        axes.plot(
            at,
            limits.low if below else candidate.top1,
            "v" if below else style.MARKERS[candidate.kind],
            color=tint,
            markerfacecolor=tint if candidate in front else style.PAPER,
            markersize=6 if candidate in front else 4.5,
            clip_on=False,
        )
    axes.margins(x=0.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    shown = {id(candidate): candidate for candidate in [*front, *_best(candidates)]}.values()
    return [
        style.Label(
            getattr(candidate, cost) / unit,
            candidate.top1,
            style.short(candidate.label, LABEL),
            style.VARIABLES[candidate.kind],
        )
        for candidate in shown
    ]
