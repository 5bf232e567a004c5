"""Write results/<dataset>/report/: the page, the tables and the figures. Drawn from files alone."""

from pathlib import Path

from iakd import files
from iakd.data.store import MANIFEST
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudyJob
from iakd.reporting import comparison, page, style, tables
from iakd.reporting.figures import accuracy, calibration, confusion, curves, hints, swaps, tuning
from iakd.reporting.studies import Study, study


def run(experiment: Experiment) -> Path:
    """Write the report's folder and return the path of report.html.

    Raises UserError where an evaluation, a history or a study is missing.
    """
    compared = comparison.read(experiment)
    manifest = files.read_json(experiment.data.folder / MANIFEST, "run `iakd prepare`")
    studies = [_study(job) for job in experiment.studies]
    folder = experiment.report / "figures"
    with style.drawing():
        drawn = {
            "accuracy": accuracy.draw(compared),
            "curves": curves.draw(compared),
            "swaps": swaps.draw(compared),
            "hints": hints.draw(compared),
            "tuning": tuning.draw(studies),
            "calibration": calibration.draw(compared),
            "confusion": confusion.draw(compared, manifest["classes"]),
        }
        figures = {name: style.write(figure, folder, name) for name, figure in drawn.items()}
        style.write_png(drawn["accuracy"], folder / "accuracy.png")
    files.write_text(experiment.report / "tables.csv", run_dir.history_text(tables.summary(compared)))
    files.write_text(experiment.report / "tables.md", tables.markdown(compared))
    files.write_text(experiment.report / "report.html", page.render(compared, studies, manifest, figures))
    return experiment.report / "report.html"


def _study(job: StudyJob) -> Study:
    from iakd.tuning.results import finished_trials, importances  # Optuna takes its time to import

    return study(job, finished_trials(job.folder), importances(job.folder))
