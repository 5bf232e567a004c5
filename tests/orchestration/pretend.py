"""A workflow that only pretends: jobs as Snakemake has them, its events, and the live files of trainings."""

import csv
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_interface_logger_plugins.common import LogEvent

from iakd.config import parse
from iakd.experiment.jobs import RESULTS, Experiment, plan_experiment
from iakd.experiment.run_dir import BEST, EVALUATION, MODEL
from iakd.orchestration import run_view
from snakemake_logger_plugin_iakd import LogHandler

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "tiny", "source": "digits"},
    "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
    "methods": {"kd": {}, "kd-tuned": {"method": "kd", "tune": {"kd.temperature": [1, 8]}}},
    "teach": {"recipe": {"epochs": 10}},
    "tune": {"trials": 4, "seeds": 2, "recipe": {"epochs": 5}},
    "distill": {"transfer": 100, "recipe": {"epochs": 20}},
}


@dataclass
class Job:
    """What the view reads of Snakemake's jobs."""

    number: int
    name: str
    output: list[str]
    log: list[str]
    reason: Any = None
    resources: dict[str, int] = field(default_factory=lambda: {"_cores": 1})

    @property
    def rule(self) -> Any:
        """The job's rule."""
        return SimpleNamespace(name=self.name)


def output(settings: Any = None, **more: Any) -> SimpleNamespace:
    """Return Snakemake's settings of its output."""
    plain: dict[str, Any] = dict.fromkeys(("printshellcmds", "nocolor", "debug_dag", "verbose", "dryrun"), False)
    return SimpleNamespace(**{**plain, "quiet": None, "show_failed_logs": False, "stdout": False, **more})


class Pretend:
    """A workflow of `settings` with all jobs to run on `cores`; the current folder is its own."""

    def __init__(self, settings: dict[str, Any] = SETTINGS, cores: int = 2, **options: Any) -> None:
        self.experiment: Experiment = plan_experiment(parse(settings, "settings"))
        name = self.experiment.params.dataset.name
        self.jobs: dict[str, Job] = {}
        self._add("prepare", f"{name}/data", "manifest.json")
        for teacher in self.experiment.teachers:
            self._add("teach", teacher.path, MODEL)
        for study in self.experiment.studies:
            self._add("tune", study.path, BEST)
        for student in self.experiment.students:
            self._add("distill", student.path, MODEL)
        for model in self.experiment.trained:
            self._add("evaluate", model.path, EVALUATION)
        self._add("report", f"{name}/report", "report.html")
        self.needed = list(self.jobs.values())
        dag = SimpleNamespace(
            jobs=list(self.jobs.values()),
            needrun_jobs=lambda exclude_finished=True: self.needed,
            needrun=lambda job: job in self.needed,
            reason=lambda job: job.reason,
        )
        self.workflow = SimpleNamespace(dag=dag, global_resources={"_cores": SimpleNamespace(value=cores)})
        self.done = 0
        run_view.connect(self.workflow, self.experiment)
        self.handler = LogHandler(output(**options), None)

    def _add(self, rule: str, path: str, product: str) -> None:
        log = f"logs/{path}{'.evaluate' if rule == 'evaluate' else ''}.log"
        self.jobs[f"{rule} {path}"] = Job(len(self.jobs) + 1, rule, [str(RESULTS / path / product)], [log])

    def job(self, rule: str, words: str = "") -> Job:
        """Return the job of a rule whose path has these words."""
        return next(job for name, job in self.jobs.items() if name.startswith(f"{rule} ") and words in name)

    def log(self, event: Any, text: str = "", level: int = logging.INFO, **more: Any) -> None:
        """Emit a record as Snakemake does."""
        record = logging.LogRecord("snakemake", level, "", 0, text, None, None)
        record.__dict__.update(event=event, **more)
        self.handler.handle(record)

    def start(self) -> None:
        """Announce the run and its jobs."""
        self.log(LogEvent.WORKFLOW_STARTED)
        stats = Counter(job.name for job in self.needed)
        self.log(LogEvent.RUN_INFO, stats={**stats, "total": len(self.needed)})
        run_view.plan()

    def begin(self, job: Job) -> None:
        """Start a job."""
        self.log(LogEvent.JOB_INFO, jobid=job.number, rule_name=job.name, output=job.output)

    def finish(self, job: Job) -> None:
        """End a job well."""
        self.log(LogEvent.JOB_FINISHED, job_id=job.number)
        self.done += 1
        self.log(LogEvent.PROGRESS, done=self.done, total=len(self.needed))

    def fail(self, job: Job, lines: str) -> None:
        """Let a job fail, with these lines in its log."""
        Path(job.log[0]).parent.mkdir(parents=True, exist_ok=True)
        Path(job.log[0]).write_text(lines)
        self.log(LogEvent.JOB_ERROR, "Error in rule", logging.ERROR, jobid=job.number, log=job.log)
        text = "RuleException:\nCalledProcessError in file x: Command '…' returned non-zero exit status 1."
        self.log(LogEvent.ERROR, text, logging.ERROR)

    def live(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Write the live files of a training or a study."""
        folder = Path(".state") / path
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "run.json").exists():
            (folder / "run.json").write_text("{}")
        if rows:
            with (folder / "history.csv").open("w") as file:
                writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def epochs(n: int, validated: int = 0, val: float = 90.0) -> list[dict[str, Any]]:
    """Return the rows of `n` epochs, one of which was validated."""
    return [
        {"epoch": epoch, "loss": 1.0, "val_top1": val if epoch == validated else "", "seconds": 0.1}
        for epoch in range(1, n + 1)
    ]


def benchmark(path: str, seconds: float) -> None:
    """Write Snakemake's benchmark of a job."""
    file = Path("logs") / f"{path}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"s\th:m:s\n{seconds}\t0:00:00\n")


def metrics(path: str, **values: float) -> None:
    """Write the metrics of a finished run."""
    folder = RESULTS / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(values))


def ago(path: Path, seconds: float) -> None:
    """Date a file back."""
    when = path.stat().st_mtime - seconds
    os.utime(path, (when, when))
