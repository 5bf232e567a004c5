"""Write results/<dataset>/report/ (page, tables, figures), from files alone."""

from pathlib import Path

from iakd import files
from iakd.data.store import MANIFEST
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.reporting import page, tables
from iakd.reporting.figures import accuracy, added, hints, mistakes, style, training, tuning
from iakd.reporting.results import StudyResults, read_comparison, read_study


def run(experiment: Experiment) -> Path:
    """Write the report's folder and return the path of report.html.

    Raises UserError if an evaluation, a history or a study is missing.
    """
    comparison = read_comparison(experiment)
    manifest = files.read_json(experiment.data.folder / MANIFEST, "run `iakd prepare`")
    studies = [_study(job, experiment.params.tune.seeds) for job in experiment.studies]
    folder = experiment.report / run_dir.FIGURES
    with style.drawing():
        drawn = {
            "accuracy": accuracy.draw_accuracy(comparison),
            "added": added.draw_added(comparison),
            "curves": training.draw_learning_curves(comparison),
            "swaps": training.draw_swap_probabilities(comparison),
            "hints": hints.draw_hint_points(comparison),
            "tuning": tuning.draw_studies(studies),
            "calibration": mistakes.draw_calibration(comparison),
            "confusion": mistakes.draw_confusion(comparison, manifest["classes"]),
        }
        figures = {name: style.write(figure, folder, name) for name, figure in drawn.items()}
        style.write_png(drawn["accuracy"], folder / "accuracy.png")
    files.write_text(experiment.report / run_dir.TABLES, run_dir.history_text(tables.summary(comparison)))
    files.write_text(experiment.report / run_dir.TABLES_TEXT, tables.markdown(comparison))
    files.write_text(experiment.report / run_dir.REPORT, page.render(comparison, studies, manifest, figures))
    return experiment.report / run_dir.REPORT


def _study(job: StudyJob, seeds: int) -> StudyResults:
    from iakd.tuning.results import finished_trials, importances  # Optuna takes its time to import

    return read_study(job, seeds, finished_trials(job.folder), importances(job.folder))
