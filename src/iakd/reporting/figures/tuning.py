"""What a study tried, what mattered, and what it found."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from iakd.reporting import style, words
from iakd.reporting.studies import Study, Trial

COLUMNS = 5
TOP, SLICES = 2.3, 1.5  # inches: the first row, each row of slices


def draw(studies: Sequence[Study]) -> Figure:
    """Per study: history, importances and the course of p; below them the accuracy against each setting."""
    if not studies:
        return style.placeholder("No study in this experiment: no method has a tuned schedule.")
    rows = [math.ceil((len(study.sampled) + 1) / COLUMNS) for study in studies]  # the kind takes two columns
    heights = [TOP + SLICES * n + 0.3 for n in rows]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(studies), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, study, n in zip(blocks, studies, rows, strict=True):
        block.set_facecolor("none")
        block.suptitle(f"{study.title}: {_summary(study)}", x=0.008, ha="left", fontsize=9, fontweight="bold")
        upper, lower = block.subfigures(2, 1, height_ratios=[TOP, SLICES * n])
        _top(upper, study)
        _slices(lower, study, n)
    return figure


def _summary(study: Study) -> str:
    counts = [f"{sum(t['state'] == state for t in study.trials)} {state}" for state in ("complete", "pruned", "failed")]
    text = f"{words.plural(len(study.trials), 'trial')} ({', '.join(c for c in counts if c[0] != '0')})"
    return f"{text}; the best, no. {study.best['number']}, reached {study.best['value']:.1f} %" if study.best else text


def _top(figure: SubFigure, study: Study) -> None:
    figure.set_facecolor("none")
    history, importances, course = figure.subplots(1, 3, width_ratios=[1.15, 0.85, 1])
    _history(history, study)
    _importances(importances, study.importances)
    _courses(course, study)


def _history(axes: Axes, study: Study) -> None:
    axes.set_title("validation accuracy (%) of each trial\n")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    styles = {
        "first": ("D", style.OTHER, "by hand"),
        "complete": ("o", style.IAKD, "by the sampler"),
        "pruned": ("x", style.MUTED, "given up"),
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
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (-0.02, 0.985),
        "ncols": 4,
        "columnspacing": 0.9,
    }
    axes.legend(**place, fontsize=7.5, handlelength=1, handletextpad=0.4, borderaxespad=0)


def _kind(trial: Trial) -> str:
    return "first" if trial["state"] == "complete" and trial.get("origin") == "first" else str(trial["state"])


def _window(study: Study) -> tuple[float, float]:
    """The accuracies worth showing: a hopeless trial must not flatten the others."""
    values = _column(study.complete or study.trials, "value")
    if not len(values):
        return 0.0, 100.0
    low, high = max(float(values.min()), float(np.quantile(values, 0.25)) - 10), float(values.max())
    room = 0.08 * max(high - low, 0.5)
    return low - room, high + room


def _importances(axes: Axes, importances: dict[str, float]) -> None:
    axes.set_title("importance of each setting\n")
    if not importances:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "too few trials to tell", transform=axes.transAxes, ha="center", color=style.MUTED)
        return
    names = list(importances)
    axes.barh(names, list(importances.values()), color=style.IAKD, height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelcolor=style.INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.15 * max(importances.values()))
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _courses(axes: Axes, study: Study) -> None:
    axes.set_title("p over the training\ncoloured: best trial; grey: the others")
    best = study.best["number"] if study.best else None
    for number, (progress, p) in study.courses.items():
        if number != best:
            axes.plot(progress, p.mean(1), color=style.MUTED, linewidth=0.6, alpha=0.4)
    if best in study.courses:
        progress, p = study.courses[best]
        same = bool(np.allclose(p, p[:, :1]))
        for block, tint in enumerate([style.IAKD] if same else style.shades(p.shape[1])):
            axes.plot(progress, p[:, block], color=tint, linewidth=2)
        if not same:
            style.name_blocks(axes, p.shape[1])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, 0.25, 0.5, 0.75], ["0", "25 %", "50 %", "75 %"])


def _slices(figure: SubFigure, study: Study, rows: int) -> None:
    figure.set_facecolor("none")
    grid = figure.add_gridspec(rows, COLUMNS)
    first, place = None, 0
    for name in study.sampled:
        width = 2 if name == "kind" else 1
        row, column = divmod(place, COLUMNS)
        axes = figure.add_subplot(grid[row, column : column + width], sharey=first)
        first = first or axes
        axes.tick_params(labelleft=column == 0)
        trials = [trial for trial in study.complete if trial.get(name) is not None]
        _slice(axes, name, trials, study.best)
        place += width
    if first:
        first.set_ylim(*_window(study))


def _slice(axes: Axes, name: str, trials: list[Trial], best: Trial | None) -> None:
    axes.set_title(f"by {name}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    places: dict[Any, int] = {}
    if name == "kind":
        kinds = sorted({trial["kind"] for trial in trials})
        places = {kind: position for position, kind in enumerate(kinds)}
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.6, len(kinds) - 0.4)
        axes.set_title("validation accuracy (%) by kind; large: the best trial")
    for trial in trials:
        winner = best is not None and trial["number"] == best["number"]
        x: Any = places.get(trial[name], trial[name])
        tint, size = (style.OTHER, 6) if winner else (style.IAKD, 3.5)
        axes.plot(x, trial["value"], "o", color=tint, markersize=size, zorder=3 if winner else 2)


def _column(trials: Sequence[Trial], name: str) -> Any:
    return np.array([trial[name] for trial in trials if trial["value"] is not None], dtype=np.float64)
