"""Studies: their trials, the importance of each setting, and the schedules tried."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from iakd.config import Parameter
from iakd.reporting import formatting
from iakd.reporting.figures import style
from iakd.reporting.results import StudyResults, TrialRow

COLUMNS = 5
CHARACTERS = 19  # of tick labels that fit into a column
TOP_HEIGHT, SLICE_HEIGHT = 2.3, 1.5  # inches, of the first row and of each row of slices


def draw_studies(studies: Sequence[StudyResults]) -> Figure:
    """Draw, per study, history, importances and p over the training; below them the accuracy against each setting."""
    if not studies:
        return style.placeholder("No study in this experiment: no method is tuned.")
    rows = [max(1, len(_places(study.varied)) and _places(study.varied)[-1][0] + 1) for study in studies]
    heights = [TOP_HEIGHT + SLICE_HEIGHT * n + 0.45 for n in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    sections = figure.subfigures(len(studies), 1, squeeze=False, height_ratios=heights)[:, 0]
    for section, study, n in zip(sections, studies, rows, strict=True):
        style.title_section(section, f"{study.title}\n{_summary(study)}")
        upper, lower = section.subfigures(2, 1, height_ratios=[TOP_HEIGHT, SLICE_HEIGHT * n])
        _draw_top(upper, study)
        _draw_slices(lower, study, n)
    return figure


def _summary(study: StudyResults) -> str:
    counts = [f"{sum(t['state'] == state for t in study.trials)} {state}" for state in ("complete", "pruned", "failed")]
    trials = f"{formatting.plural(len(study.trials), 'trial')} × {formatting.plural(study.seeds, 'seed')}"
    text = f"{trials} ({', '.join(c for c in counts if c[0] != '0')}; {study.epochs:,} epochs)"
    return (
        f"{text}; the best, no. {study.best['number']}, reached {formatting.number(study.best['value'], 1)} %"
        if study.best
        else text
    )


def _draw_top(figure: SubFigure, study: StudyResults) -> None:
    figure.set_facecolor("none")
    widths = [1.15, 0.85, *([1] if study.pareto_front else []), *([1] if study.curves else [])]
    history, importances, *others = figure.subplots(1, len(widths), width_ratios=widths)
    _draw_history(history, study)
    _draw_importances(importances, study.importances())
    if study.pareto_front:
        _draw_pareto_front(others[0], study)
    if study.curves:
        _draw_curves(others[-1], study)


def _draw_history(axes: Axes, study: StudyResults) -> None:
    mean = f" (mean of {study.seeds} seeds)" if study.seeds > 1 else ""
    axes.set_title(f"Validation {study.measure}, %, by trial{mean}\n")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    styles = {
        "first": ("D", style.OTHER, "from the settings"),
        "complete": ("o", style.IAKD, "sampled"),
        "pruned": ("x", style.MUTED, "pruned"),
    }
    for kind, (shape, tint, name) in styles.items():
        chosen = [t for t in study.trials if _kind(t) == kind and t["value"] is not None]
        if chosen:
            axes.plot(
                _column(chosen, "number"),
                _column(chosen, "value"),
                shape,
                color=tint,
                markersize=4,
                label=name,
            )
    complete = study.complete
    if complete:
        best = np.maximum.accumulate(_column(complete, "value"))
        axes.step(
            _column(complete, "number"),
            best,
            where="post",
            color=style.INK,
            linewidth=0.9,
            label="best so far",
        )
    axes.set_ylim(*_window(study))
    location: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (-0.02, 0.985),
        "ncols": 4,
        "columnspacing": 0.9,
    }
    axes.legend(**location, fontsize=7.5, handlelength=1, handletextpad=0.4, borderaxespad=0)


def _kind(trial: TrialRow) -> str:
    return "first" if trial["state"] == "complete" and trial.get("origin") == "first" else str(trial["state"])


def _window(study: StudyResults) -> tuple[float, float]:
    """Return the range of accuracies to show, which a very bad trial must not stretch."""
    values = _column(study.complete or study.trials, "value")
    if not len(values):
        return 0.0, 100.0
    low, high = max(float(values.min()), float(np.quantile(values, 0.25)) - 10), float(values.max())
    room = 0.08 * max(high - low, 0.5)
    return low - room, high + room


def _draw_importances(axes: Axes, importances: dict[str, float]) -> None:
    axes.set_title("importance of each setting\n")
    if not importances:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "too few trials", transform=axes.transAxes, ha="center", color=style.MUTED)
        return
    names = list(map(formatting.setting, importances))
    axes.barh(names, list(importances.values()), color=style.IAKD, height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.15 * max(importances.values()))
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _draw_pareto_front(axes: Axes, study: StudyResults) -> None:
    axes.set_title(f"Validation {study.measure}, %, by MACs of a training\nline: Pareto front")
    axes.plot(_column(study.complete, "macs"), _column(study.complete, "value"), "o", color=style.IAKD, markersize=3.5)
    front = sorted((t for t in study.complete if t["number"] in study.pareto_front), key=lambda t: float(t["macs"]))
    axes.step(_column(front, "macs"), _column(front, "value"), "o-", where="post", color=style.OTHER, markersize=4.5)
    axes.set_ylim(*_window(study))
    axes.xaxis.set_major_locator(MaxNLocator(3))


def _draw_curves(axes: Axes, study: StudyResults) -> None:
    axes.set_title("p over the training\ncoloured: best trial; grey: others")
    best = study.best["number"] if study.best else None
    for number, (progress, p) in study.curves.items():
        if number != best:
            axes.plot(progress, p.mean(1), color=style.MUTED, linewidth=0.6, alpha=0.4)
    if best in study.curves:
        progress, p = study.curves[best]
        equal = bool(np.allclose(p, p[:, :1]))
        for block, tint in enumerate([style.IAKD] if equal else style.block_colours(p.shape[1])):
            axes.plot(progress, p[:, block], color=tint, linewidth=2)
        if not equal:
            style.label_blocks(axes, p.shape[1])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, 0.25, 0.5, 0.75], ["0", "25 %", "50 %", "75 %"])


def _width(parameter: Parameter) -> int:
    """The columns that a setting's slice takes: as many as the names of its choices need."""
    characters = sum(len(str(choice)) + 2 for choice in parameter.choices)
    return max(1, min(COLUMNS, math.ceil(characters / CHARACTERS)))


def _places(parameters: Sequence[Parameter]) -> list[tuple[int, int, int]]:
    """Row, column and width of each setting's slice."""
    places: list[tuple[int, int, int]] = []
    row = column = 0
    for parameter in parameters:
        width = _width(parameter)
        if column + width > COLUMNS:
            row, column = row + 1, 0
        places.append((row, column, width))
        column += width
    return places


def _draw_slices(figure: SubFigure, study: StudyResults, rows: int) -> None:
    figure.set_facecolor("none")
    grid = figure.add_gridspec(rows, COLUMNS)
    first = None
    for parameter, (row, column, width) in zip(study.varied, _places(study.varied), strict=True):
        axes = figure.add_subplot(grid[row, column : column + width], sharey=first)
        first = first or axes
        axes.tick_params(labelleft=column == 0)
        trials = [trial for trial in study.complete if trial.get(parameter.name) is not None]
        _draw_slice(axes, parameter, trials, study.best)
    if first:
        first.set_ylim(*_window(study))


def _draw_slice(axes: Axes, parameter: Parameter, trials: list[TrialRow], best: TrialRow | None) -> None:
    axes.set_title(f"by {formatting.setting(parameter.name)}")
    positions: dict[Any, int] = {}
    if parameter.choices:
        tried = [choice for choice in parameter.choices if choice in {trial[parameter.name] for trial in trials}]
        positions = {choice: position for position, choice in enumerate(tried)}
        axes.set_xticks(range(len(tried)), [str(choice) for choice in tried])
        axes.set_xlim(-0.6, len(tried) - 0.4)
    elif parameter.values.log:
        axes.set_xscale("log")
        values = _column(trials, parameter.name)
        wide = len(values) > 0 and values.max() > 10 * values.min()  # otherwise LogLocator names every digit
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=parameter.integer))
    for trial in trials:
        is_best = best is not None and trial["number"] == best["number"]
        x: Any = positions.get(trial[parameter.name], trial[parameter.name])
        tint, size = (style.OTHER, 6) if is_best else (style.IAKD, 3.5)
        axes.plot(x, trial["value"], "o", color=tint, markersize=size, zorder=3 if is_best else 2)


def _column(trials: Sequence[TrialRow], name: str) -> Any:
    return np.array([trial[name] for trial in trials if trial["value"] is not None], dtype=np.float64)
