"""What `make run` shows of a workflow: one calm view on a terminal, short lines in a log, and `iakd status`.

Snakemake says which jobs run, through its plugin `snakemake_logger_plugin_iakd`; how far they are is read from the live
files of the trainings.
"""

import json
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.common import LogEvent

from iakd.experiment.jobs import RESULTS, Experiment
from iakd.experiment.run_dir import METRICS, REPORT, VERDICT
from iakd.orchestration.workload import (
    STAGES,
    TRAININGS,
    Piece,
    Running,
    Workload,
    live_seconds,
    name_of,
    piece_of,
    stage_of,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

SECONDS_BETWEEN_LINES = 30.0  # of a log in which nothing else is said
SECONDS_BETWEEN_READS = 1.0  # of the live files; longer where reading takes long
SHARE_OF_TIME = 0.02  # that reading may take
LOG_LINES = 15  # of a failed job that are shown
PLURALS = {
    "prepare": "data",
    "teach": "teachers",
    "tune": "studies",
    "distill": "students",
    "evaluate": "evaluations",
    "evaluation": "comparison",
    "export": "exports",
    "latency": "latencies",
    "report": "report",
}
TOLD = ("prepare", "teach", "tune", "distill", "export", "report")  # jobs of which a log tells that they are done
NOISE = (  # what Snakemake adds to a failed job, which is shown already
    "Exiting because a job execution failed",
    "At least one job did not complete successfully",
    "returned non-zero exit status",
)

_workflow: Any = None  # Snakemake's, of this process
_experiment: Experiment | None = None
_planned: Workload | None = None


def connect(workflow: Any, experiment: Experiment) -> None:
    """Tell the view what this process's workflow is about; called by the Snakefile."""
    global _workflow, _experiment, _planned
    _workflow, _experiment, _planned = workflow, experiment, None


def connected() -> tuple[Any, Experiment | None]:
    """Return this process's workflow and its experiment, if the Snakefile has been read."""
    return _workflow, _experiment


def plan() -> None:
    """Tell the view which jobs are going to run; called by the Snakefile before the first one."""
    global _planned
    if _experiment is not None:
        _planned = workload(_workflow, _experiment)


def workload(workflow: Any, experiment: Experiment) -> Workload:
    """Return the jobs that a workflow has to run, as Snakemake has decided."""
    limits = {name: limit.value for name, limit in workflow.global_resources.items()}
    limits = {name: limit for name, limit in limits.items() if isinstance(limit, int) and 0 < limit < sys.maxsize}
    pieces = []
    for job in workflow.dag.needrun_jobs(exclude_finished=False):
        wanted = {name: job.resources.get(name) for name in limits}
        shares = [n / limits[name] for name, n in wanted.items() if isinstance(n, int)]
        pieces.append(piece_of(job.rule.name, job.output, max(shares, default=1.0)))
    return Workload(experiment, pieces)


def outcome(experiment: Experiment) -> list[str]:
    """Return the verdict, in two lines for each pair, and where the report is; nothing as long as there is none."""
    lines = []
    with suppress(OSError, UnicodeDecodeError):
        lines = (experiment.report / VERDICT).read_text().splitlines()
    report = experiment.report / REPORT
    return [*lines, f"The report: {report}"] if report.exists() else []


def on_terminal() -> bool:
    """Whether standard error is a terminal that can show a view: not in a CI system, nor where TERM is dumb."""
    ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stderr.isatty() and not ci and os.environ.get("TERM") != "dumb"


def view_of_a_run() -> "RunView":
    """Return a view that suits standard error: a terminal, or a log."""
    return TerminalView() if on_terminal() else LogView()


class RunView:
    """What is known of a run that goes on; subclasses show it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.since = time.monotonic()
        self.done = self.total = 0
        self.totals: Counter[str] = Counter()  # jobs by rule
        self.ended: Counter[str] = Counter()
        self.running: dict[int, Running] = {}
        self.waiting: dict[tuple[str, tuple[str, ...]], Piece] = {}
        self.failed: list[str] = []
        self.interrupted = False
        self.nothing_to_do = False
        self.fraction = 0.0  # of the whole run
        self.left: float | None = None  # seconds
        self._began: dict[int, float] = {}
        self._said: set[str] = set()
        self._work: Workload | None = None
        self._read_again = 0.0

    def say(self, text: str, style: str = "") -> None:
        """Show a line that stays."""
        raise NotImplementedError

    def end(self) -> None:
        """Say what was done."""
        raise NotImplementedError

    def take(self, event: Any, record: logging.LogRecord) -> None:
        """Take note of an event of Snakemake's."""
        with self.lock:
            about = record.__dict__
            if event == LogEvent.RUN_INFO and not self.total:
                stats = dict(about["stats"])
                self.total = stats.pop("total")
                for rule, n in stats.items():
                    self.totals[stage_of(rule)] += n
                self.planned()
            elif event == LogEvent.JOB_INFO:
                self._begin(about["jobid"], piece_of(about["rule_name"], about["output"]))
            elif event == LogEvent.JOB_FINISHED:
                self._finish(about["job_id"])
            elif event == LogEvent.JOB_ERROR:
                self._fail(about["jobid"], list(about["log"]))
            elif event == LogEvent.PROGRESS:
                self.done, self.total = about["done"], about["total"]
            elif event is None:
                self._hear(record.getMessage())

    def _hear(self, text: str) -> None:
        if text.startswith("Terminating processes on user request"):
            self.interrupted = True
            self.say("stopping: trainings save their state …")
        elif text.startswith("Will exit after finishing"):
            self.interrupted = True
            self.say("stopping once the running jobs are done")
        elif text.startswith("Nothing to be done"):
            self.nothing_to_do = True
        elif text.startswith("Trying to restart job"):
            self.say(text)

    def _begin(self, number: int, piece: Piece) -> None:
        self._adopt_plan()
        piece = self.waiting.pop((piece.rule, piece.paths), piece)
        self.running[number] = Running(piece)
        self._began[number] = time.monotonic()

    def _adopt_plan(self) -> None:
        if self._work is None and _planned is not None:
            self._work = _planned
            self.waiting = {(piece.rule, piece.paths): piece for piece in self._work.pieces}

    def _finish(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is None:
            return
        job.seconds = time.monotonic() - self._began[number]
        self.ended[job.piece.rule] += 1
        if self._work:
            self._work.learn(job.piece, job.seconds)
        self.finished(job)

    def _fail(self, number: int, logs: list[str]) -> None:
        job = self.running.pop(number, None)
        if job is None or self.interrupted:
            return
        self.failed.append(" ".join(self.name(job.piece)))
        lines = [line for log in map(Path, logs) if log.exists() for line in _tail(log)]
        self.say(f"✗ {self.failed[-1]} failed" + (f"; the end of {logs[0]}:" if lines else ""), "red")
        for line in lines:
            self.say(f"    {line}")

    def warn(self, text: str) -> None:
        """Show a warning or an error, once."""
        with self.lock:
            if text not in self._said and not any(noise in text for noise in NOISE):
                self._said.add(text)
                self.say(text, "yellow")

    def planned(self) -> None:
        """Say how much there is to do."""
        from iakd.reporting.formatting import plural

        name = f"{_experiment.params.dataset.name}: " if _experiment else ""
        self.say(f"{name}{plural(self.total, 'job')} to run")

    def finished(self, job: Running) -> None:
        """Show that a job is done."""

    def name(self, piece: Piece) -> tuple[str, str]:
        """Return what a job is, and which."""
        return name_of(piece, _experiment is None or len(_experiment.params.paired) > 1)

    def read(self) -> None:
        """Read how far the running jobs are, unless it was just read."""
        now = time.monotonic()
        if now < self._read_again:
            return
        for number, job in self.running.items():
            job.seconds = now - self._began[number]
            if self._work:
                job.progress = self._work.progress(job.piece)
                if job.progress.fraction > 0:
                    job.seconds = live_seconds(job.piece) or job.seconds
        running = list(self.running.values())
        self.left = self._work.left(self.waiting.values(), running) if self._work else None
        if self.left is not None:
            fraction = (now - self.since) / max(now - self.since + self.left, 1e-9)
        else:
            fraction = (self.done + sum(job.progress.fraction for job in running)) / max(self.total, 1)
        self.fraction = max(self.fraction, min(fraction, 1.0))  # a bar that goes backwards helps nobody
        took = time.monotonic() - now
        self._read_again = now + max(SECONDS_BETWEEN_READS, took / SHARE_OF_TIME)

    def stages(self) -> str:
        """Return how many jobs of each stage are done: 'studies 1/3 · students 12/65'."""
        parts = []
        for rule in STAGES:
            total = self.totals[rule]
            if total > 1 and self.ended[rule] < total:
                parts.append(f"{PLURALS[rule]} {self.ended[rule]}/{total}")
            elif self.ended[rule] < total:
                parts.append(PLURALS[rule])
        return " · ".join(parts)

    def time_left(self) -> str:
        """Return 'about 4 min left', or nothing as long as it is unknown."""
        from iakd.reporting.formatting import duration

        if self.left is None or not self.running:
            return ""
        step = 1 if self.left < 20 else 10 if self.left < 120 else 60  # an estimate that flickers is hard to read
        return f"about {duration(step * math.ceil(self.left / step))} left"

    def summary(self) -> str:
        """Return what was done, in a sentence."""
        from iakd.reporting.formatting import duration, plural

        took = duration(time.monotonic() - self.since)
        if self.nothing_to_do:
            return "Nothing to do: everything is up to date."
        if not self.total:
            return ""
        if self.interrupted:
            return (
                f"Interrupted after {took}; {self.done} of {plural(self.total, 'job')} are done. Run again to resume."
            )
        if self.failed:
            others = self.total - self.done - len(self.failed)
            text = f"{plural(len(self.failed), 'job')} failed after {took}; {self.done} of {self.total} are done"
            return text + (f", {others} did not run because of that." if others else ".")
        if self.done < self.total:
            return f"Stopped after {took}: {self.done} of {plural(self.total, 'job')} are done."
        return f"{plural(self.total, 'job')} done in {took}."

    def closing(self) -> list[str]:
        """Return the last lines; after a run, the Snakefile itself prints the outcome."""
        lines = [self.summary()]
        if self.nothing_to_do and _experiment and any(job.rule.name == "report" for job in _workflow.dag.jobs):
            lines += outcome(_experiment)
        return [line for line in lines if line]


class TerminalView(RunView):
    """A view at the bottom of the terminal, redrawn twice a second; what stays is printed above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        class Plain(Console):
            def show_cursor(self, show: bool = True) -> bool:
                """Leave the cursor alone: a view that is killed could not bring it back."""
                return False

        self.console = Plain(stderr=True, highlight=False, soft_wrap=False)
        self.live = Live(
            console=self.console, get_renderable=self._draw, refresh_per_second=2, transient=True, redirect_stdout=False
        )
        self.live.start()

    def say(self, text: str, style: str = "") -> None:
        """Print above the view."""
        from rich.text import Text

        self.console.print(Text(text, style), soft_wrap=True)

    def _draw(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self.lock:
            self.read()
            if not self.total:
                return Text("finding out what has to be done …")
            head = Text(self.stages() or "bringing MLflow up to date …", "bold", no_wrap=True, overflow="ellipsis")
            bar = Table.grid(padding=(0, 2))
            numbers = f"{100 * self.fraction:.0f} %  {self.done}/{self.total} jobs"
            wide = max(10, min(40, self.console.width - 45))
            bar.add_row(ProgressBar(total=1.0, completed=self.fraction, width=wide), numbers, self.time_left())
            table = Table.grid(padding=(0, 2))
            for column in range(5):
                table.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if column == 1 else None)
            jobs = [job for rule in (*STAGES, "") for job in self.running.values() if rule == _stage(job.piece)]
            room = max(1, self.console.height - 7)
            for job in jobs[:room]:
                what, which = self.name(job.piece)
                table.add_row(Text(what, "dim"), which, job.progress.text, job.progress.accuracy)
            more = [Text(f"… and {len(jobs) - room} more", "dim")] if len(jobs) > room else []
            return Group("", head, bar, "", table, *more)

    def end(self) -> None:
        """Clear the view and say what was done."""
        self.live.stop()
        for line in self.closing():
            self.say(line, "red" if self.failed else "")


class LogView(RunView):
    """Short lines with the time of day: when a training ends, and what runs when nothing else was said for long."""

    def __init__(self) -> None:
        super().__init__()
        self._spoke = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._speak_now_and_then, daemon=True).start()

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self._spoke = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _speak_now_and_then(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES / 6):
            with self.lock:
                if self.running and time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
                    self._tell_what_runs()

    def _tell_what_runs(self) -> None:
        self._read_again = 0.0
        self.read()
        jobs = list(self.running.values())
        shown = [" ".join(filter(None, [*self.name(job.piece), job.progress.text])) for job in jobs[:3]]
        more = f" and {len(jobs) - 3} more" if len(jobs) > 3 else ""
        self.say(f"{self._count()} running: {', '.join(shown)}{more}{self._left()}")

    def _count(self) -> str:
        return f"[{self.done}/{self.total}]"

    def _left(self) -> str:
        left = self.time_left()
        return f"; {left}" if left else ""

    def finished(self, job: Running) -> None:
        """Say that a training is done, with its accuracy."""
        from iakd.reporting.formatting import duration

        if job.piece.rule not in TOLD:
            return
        self.done += 1  # Snakemake says so only after this event
        self.read()
        accuracy = _accuracy(job.piece)
        self.say(
            f"{self._count()} {' '.join(filter(None, self.name(job.piece)))}: "
            f"{accuracy + ', ' if accuracy else ''}{duration(job.seconds)}{self._left()}"
        )

    def end(self) -> None:
        """Say what was done."""
        self._ended.set()
        with self.lock:
            for line in self.closing():
                self.say(line)


def _stage(piece: Piece) -> str:
    """Return the stage of a job; nothing for one of another workflow, or a target."""
    return piece.rule if piece.rule in STAGES else ""


def _tail(log: Path) -> list[str]:
    """Return the last lines of a log."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
    return lines[-LOG_LINES:]


def _accuracy(piece: Piece) -> str:
    """Return the validation accuracy of a training that has ended, or of a study's best trial."""
    name, word = ("best_value", "best") if piece.rule == "tune" else ("val_top1", "val")
    if piece.rule not in TRAININGS:
        return ""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = [json.loads((RESULTS / path / METRICS).read_text())[name] for path in piece.paths]
        return f"{word} {', '.join(f'{value:.1f}' for value in found)} %"
    return ""
