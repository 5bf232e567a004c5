"""Write results/<dataset>/report/ (page, tables, figures), from files alone."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from iakd import files
from iakd.data.store import MANIFEST
from iakd.evaluation import made_from
from iakd.evaluation.record import read_record
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.reporting import page, paper, record, review, tables
from iakd.reporting.exported import read_exports
from iakd.reporting.figures import accuracy, added, hints, mistakes, pareto, style, training, tuning
from iakd.reporting.results import StudyResults, read_comparison, read_study
from iakd.reporting.verdict import verdict_lines
from iakd.tuning.results import finished_trials, importances


class _Source(BaseModel):
    name: str
    about: str


class _Image(BaseModel):
    channels: int
    height: int
    width: int


class _Split(BaseModel):
    n: int
    sha256: str
    per_class: list[int]


class _Manifest(BaseModel):
    source: _Source
    classes: list[str]
    image: _Image
    splits: dict[str, _Split]
    problems: list[str]
    sha256: str


def run(experiment: Experiment) -> Path:
    """Write the report's folder and return the path of report.html.

    Raises UserError if an evaluation, a history or a study is missing.
    """
    made = made_from.report(experiment)
    comparison = read_comparison(experiment)
    manifest = _manifest(experiment)
    studies = [_study(job, experiment.params.tune.seeds) for job in experiment.studies]
    exports = read_exports(experiment, comparison)
    folder = experiment.report / run_dir.FIGURES
    origins = review.figure_origins(comparison, studies, exports)
    drawings = {  # the one that takes longest first
        "tuning": partial(tuning.draw_studies, studies),
        "accuracy": partial(accuracy.draw_accuracy, comparison),
        "added": partial(added.draw_added, comparison),
        "curves": partial(training.draw_learning_curves, comparison),
        "swaps": partial(training.draw_swap_probabilities, comparison),
        "hints": partial(hints.draw_hint_points, comparison),
        "calibration": partial(mistakes.draw_calibration, comparison),
        "confusion": partial(mistakes.draw_confusion, comparison, manifest["classes"]),
    }
    if exports:
        drawings["pareto"] = partial(pareto.draw_pareto, exports)
    with style.drawing():
        figures = style.write_all(drawings, folder, origins)
    text = paper.paragraph(comparison, studies, manifest)
    commit = comparison.models[0].record["git_commit"]
    settings = page.settings_text(experiment.params)
    for name, content in (
        (run_dir.TABLES, run_dir.history_text(tables.summary(comparison))),
        (run_dir.TABLES_TEXT, tables.markdown(comparison)),
        (run_dir.LATEX, paper.latex(comparison)),
        (run_dir.PARAGRAPH, paper.as_latex(text, commit)),
        (run_dir.BIBLIOGRAPHY, paper.bibliography(comparison, text)),
        (run_dir.VERDICT, verdict_lines(comparison)),
        (run_dir.REPORT, page.render(comparison, studies, manifest, figures, text, exports)),
    ):
        files.write_text(experiment.report / name, content)
    files.write_json(experiment.report / run_dir.RESULTS_FILE, record.content(comparison, manifest, settings))
    made.record()
    return experiment.report / run_dir.REPORT


def _manifest(experiment: Experiment) -> dict[str, Any]:
    """Return what is known about the data. Raises UserError if it is missing or damaged."""
    return read_record(experiment.data.folder / MANIFEST, _Manifest, "run `iakd prepare`")


def _study(job: StudyJob, seeds: int) -> StudyResults:
    return read_study(job, seeds, finished_trials(job.folder), partial(importances, job.folder))
