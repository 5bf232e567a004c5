"""Figures whose look depends on the data: many classes or two, long names, settings that few trials used."""

import os
from itertools import combinations
from pathlib import Path

import fake_experiment
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iakd.errors import RunFailed
from iakd.reporting.figures import mistakes, style
from iakd.reporting.results import most_frequent, read_comparison

LONG = "a rather long name of a class of traffic signs, number {}"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drawn(classes: list[str]) -> Figure:
    experiment = fake_experiment.plan({"kd": {}}, seeds=(0,), epochs=2)
    fake_experiment.write(experiment, lambda _: 90.0, classes=classes)
    with style.drawing():
        figure = mistakes.draw_confusion(read_comparison(experiment), classes)
        FigureCanvasAgg(figure)
        figure.canvas.draw()
    return figure


def overlapping(axes: Axes) -> list[tuple[str, str]]:
    """Names beside the rows of a panel that cover each other, by a pixel or more."""
    shown = [label for label in axes.get_yticklabels() if label.get_text()]
    boxes = [(label.get_text(), label.get_window_extent()) for label in shown]
    return [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if min(one.y1, two.y1) - max(one.y0, two.y0) > 1]


@pytest.mark.parametrize("n", [2, 3, 4, 10, 20, 50, 200, 1000])
def test_the_mistakes_are_readable_with_few_and_with_many_classes(n):
    names = [LONG.format(i) if i % 2 else f"n{i:08d}_Xoloitzcuintli" for i in range(n)]
    figure = drawn(names)
    left, right = figure.axes
    rows = n if n <= mistakes.MAX_CLASSES else mistakes.MAX_LISTED
    for axes in (left, right):
        assert axes.get_window_extent().height / figure.dpi / rows >= 0.17, "inches of a row"
        assert not overlapping(axes)
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert len(set(labels)) == len(labels) == rows
        for label in (*axes.get_yticklabels(), *axes.get_xticklabels()):
            box = label.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1, f"{label.get_text()} is cut off"


def test_without_mistakes_the_list_says_so():
    classes = [str(i) for i in range(30)]
    experiment = fake_experiment.plan({"kd": {}}, seeds=(0,), epochs=2)
    fake_experiment.write(experiment, lambda _: 100.0, classes=classes)
    with style.drawing():
        figure = mistakes.draw_confusion(read_comparison(experiment), classes)
    assert [text.get_text() for text in figure.axes[0].texts] == ["no mistakes"]


def test_shortened_names_stay_different():
    """Cut in the middle; where that makes twins, at the start; where these are twins too, with their number."""
    names = ["n00000_Xoloitzcuintli", "n00001_Xoloitzcuintli", "a cat", "a black dog, in", "a black cat, in"]
    assert style.short_all(names, 10) == ["n00000… #1", "n00001… #2", "a cat", "…k dog, in", "…k cat, in"]


def test_the_most_frequent_mistakes_come_first_and_of_equals_those_of_the_rarer_class():
    confusion = np.array([[90, 5, 0], [2, 7, 1], [5, 0, 10]], dtype=float)
    assert most_frequent(confusion) == [(2, 0), (0, 1), (1, 0), (1, 2)]


def test_a_process_that_dies_while_it_writes_figures_ends_the_report_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "svg", lambda *_: os._exit(9))  # as one that is killed because memory is short
    with pytest.raises(RunFailed, match="a process that writes figures died; probably out of memory"):
        style.write_all({"one": Figure, "two": Figure}, tmp_path, {"one": "", "two": ""})


def test_figures_of_an_earlier_report_are_removed(tmp_path):
    with style.drawing():
        for names in (["one", "two"], ["two"]):
            style.write_all(dict.fromkeys(names, Figure), tmp_path, dict.fromkeys(names, ""))
    assert {path.stem for path in tmp_path.iterdir()} == {"two"}
