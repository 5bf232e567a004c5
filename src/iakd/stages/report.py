"""Write results/<dataset>/report/: the page, the tables and the figures. Drawn from files alone."""

from pathlib import Path

from iakd import files, runs
from iakd.data.store import MANIFEST
from iakd.plan import Plan, StudyJob
from iakd.reporting import comparison, page, style, tables
from iakd.reporting.figures import accuracy, calibration, confusion, curves, hints, swaps, tuning
from iakd.reporting.studies import Study, study


def run(plan: Plan) -> Path:
    """Write the report's folder and return the path of report.html.

    Raises UserError where an evaluation, a history or a study is missing.
    """
    compared = comparison.read(plan)
    manifest = files.read_json(plan.data.folder / MANIFEST, "run `iakd prepare`")
    studies = [_study(job) for job in plan.studies]
    folder = plan.report / "figures"
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
    files.write_text(plan.report / "tables.csv", runs.history_text(tables.summary(compared)))
    files.write_text(plan.report / "tables.md", tables.markdown(compared))
    files.write_text(plan.report / "report.html", page.render(compared, studies, manifest, figures))
    return plan.report / "report.html"


def _study(job: StudyJob) -> Study:
    from iakd.tuning.study import finished_trials, importances  # Optuna takes its time to import

    return study(job, finished_trials(job.folder), importances(job.folder))
