"""Step 3 of mirroring: read one run's files as MLflow shall show them (name, tags, parameters, metrics, artifacts)."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from iakd import files
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import EVALUATION, FIGURES, HISTORY, METRICS, MODEL, PEER, REPORT, RUN, Row, read_history
from iakd.tracking.scan import RunFiles

MAX_PARAMETER_LENGTH = 500  # characters, which every MLflow server accepts
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's words
NO_STEP = 0  # step of a number that a run has only one of: MLflow draws these as bars, others as curves
CLOCK_SKEW = 50  # ms by which a file's time may lag behind the clock
HINT = "train it again"


@dataclass(frozen=True)
class MetricValue:
    """One value of a metric; `timestamp` in ms since 1970."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass
class RunContent:
    """A run as MLflow shall show it; times in ms since 1970."""

    key: str
    name: str
    path: str
    status: str
    started: int
    ended: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    history: list[MetricValue] = field(default_factory=list)  # per epoch
    results: dict[str, list[MetricValue]] = field(default_factory=dict)  # by the name of their file
    artifacts: dict[str, str] = field(default_factory=dict)  # name in the run's folder -> digest of the file

    @property
    def parent(self) -> str | None:
        """The path of the study that this run is a trial of, or of the trial that it is a seed of."""
        study, separator, trial = self.path.rpartition("/trials/")
        number, nested, _ = trial.partition("/")
        return (f"{study}/trials/{number}" if nested else study) if separator else None


def read_content(run: RunFiles) -> RunContent:
    """Read a run's files. Raises UserError if one is damaged, OSError if they change meanwhile."""
    if run.is_report:
        return _report_content(run)
    content = _run_content(run)
    # run.json is the first file to be replaced when another run takes over the folder
    if (run.folder / RUN).stat().st_mtime_ns != run.stamps[0][1]:
        raise FileNotFoundError(f"{run.folder} changed while it was read")
    return content


def _run_content(run: RunFiles) -> RunContent:
    record = _read_object(run.folder / RUN)
    try:
        content = RunContent(
            key=str(record["key"]),
            name=_name(record, run.path),
            path=run.path,
            status=_live_status(run, record) if run.live else FINISHED,
            started=milliseconds(record["started"]),
            tags=_tags(record, run.path),
            params=flat_params(record.get("params", {})),
        )
        if not run.live:
            content.ended = milliseconds(record["finished"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run.folder / RUN} is damaged ({type(error).__name__}: {error}): {HINT}") from None
    times = run.times()
    if content.status in (KILLED, FAILED):
        content.ended = max(times.values())
    # a live folder may still hold the history of an earlier run
    outdated = run.live and times.get(HISTORY, 0) + CLOCK_SKEW < content.started
    if HISTORY in times and not outdated:
        rows = _read_history(run.folder / HISTORY)
        content.history = _history_values(rows, content.started, content.ended or times[HISTORY])
    if not run.live:
        _add_results(content, run, times)
        content.artifacts = _artifacts(run, {MODEL: record.get("model_sha256"), PEER: record.get("peer_sha256")})
    return content


def _read_history(path: Path) -> list[Row]:
    path.stat()
    return read_history(path)


def _live_status(run: RunFiles, record: dict[str, Any]) -> str:
    if run.locked:
        return RUNNING
    error = record.get("error")
    return FAILED if error and not str(error).startswith("KeyboardInterrupt") else KILLED


def _name(record: dict[str, Any], path: str) -> str:
    match record["stage"]:
        case "trial":
            return f"trial {record.get('trial', path.rpartition('/')[2])}"
        case "trial_seed":
            return f"trial {record['trial']}, seed {record['trial_seed']}"
        case "tune":
            return f"study {_pair_name(record) or path.rpartition('/')[2]} {record.get('method') or ''}".rstrip()
        case "teach":
            return f"{record.get('teacher')} seed {record['seed']}"
        case _:
            return f"{record.get('method') or path} seed {record['seed']}"


def _pair_name(record: dict[str, Any]) -> str | None:
    teacher, student = record.get("teacher"), record.get("student")
    return f"{teacher}-{student}" if teacher and student else None


def _tags(record: dict[str, Any], path: str) -> dict[str, str]:
    commit = record.get("git_commit")
    about = {name: record.get(name) for name in ("dataset", "stage", "teacher", "student", "method", "trial", "seed")}
    tags = {
        **{f"iakd.{name}": value for name, value in about.items()},
        "iakd.key": record["key"],
        "iakd.path": path,
        "iakd.pair": _pair_name(record),
        "iakd.data_sha256": record.get("data_sha256"),
        "iakd.git_commit": commit,
        "iakd.device": record.get("device"),
        "mlflow.source.git.commit": commit.removesuffix("-dirty") if commit else None,
        "mlflow.source.name": f"iakd {record['stage']}",
        "mlflow.note.content": _description(record, path),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _description(record: dict[str, Any], path: str) -> str:
    student, teacher, method = record.get("student"), record.get("teacher"), record.get("method")
    subject = {
        "teach": f"Teacher {teacher}",
        "tune": f"Search for the best settings of {method} for {teacher} → {student}",
        "trial": f"Trial of settings of {method} for {teacher} → {student}, over its seeds",
        "trial_seed": f"One seed of a trial of settings of {method} for {teacher} → {student}",
    }.get(record["stage"], f"Student {student} of teacher {teacher}, trained with {method}")
    return f"{subject}, on {record.get('dataset')}. Files: `{RESULTS / path}/`"


def _history_values(rows: list[Row], started: int, latest: int) -> list[MetricValue]:
    """Return the measured values of each epoch; `step` is the epoch, the time follows the epochs' seconds."""
    values, elapsed = [], 0.0
    for position, row in enumerate(rows, 1):
        elapsed += row.get("seconds") or 0.0
        step = int(row.get("epoch") or position)
        time = max(started, min(started + round(1000 * elapsed), latest))
        values += [
            MetricValue(allowed_name(name), float(value), time, step)
            for name, value in row.items()
            if name != "epoch" and value is not None
        ]
    return values


def _add_results(content: RunContent, run: RunFiles, times: dict[str, int]) -> None:
    """Add the numbers of evaluation.json, and those of metrics.json that the last epoch did not show already."""
    last_epoch = max((value.step for value in content.history), default=0)
    shown = {value.name: value.value for value in content.history if value.step == last_epoch}
    curves = {value.name for value in content.history}
    if METRICS in times:
        metrics = _read_object(run.folder / METRICS)
        if isinstance(metrics.get("state"), str):
            content.tags["iakd.state"] = metrics["state"]
            if metrics["state"] == "failed":
                content.status = FAILED
        content.results[METRICS] = [
            MetricValue(name, value, content.ended or times[METRICS], last_epoch if name in curves else NO_STEP)
            for name, value in flat_numbers(metrics).items()
            if shown.get(name) != value
        ]
    if EVALUATION in times:
        evaluation = _read_object(run.folder / EVALUATION)
        evaluation.pop("seed", None)
        content.results[EVALUATION] = [
            MetricValue(f"test_{name}", value, times[EVALUATION], NO_STEP)
            for name, value in flat_numbers(evaluation).items()
        ]


def _read_object(path: Path) -> dict[str, Any]:
    path.stat()  # raises OSError: a missing file is not a damaged one
    return files.read_object(path, HINT)


def _artifacts(run: RunFiles, known: dict[str, str | None]) -> dict[str, str]:
    """Return a digest of each file, and one for the folder of figures."""
    digests: dict[str, str] = {}
    figures: dict[str, str] = {}
    for name in run.names():
        group = figures if name.startswith(f"{FIGURES}/") else digests
        group[name] = (known.get(name) or files.sha256_file(run.folder / name))[:16]
    return {**digests, FIGURES: files.digest(figures)[:16]} if figures else digests


def _report_content(report: RunFiles) -> RunContent:
    dataset = report.path.partition("/")[0]
    written = report.times()[REPORT]
    return RunContent(
        key=f"report:{dataset}",
        name="report",
        path=report.path,
        status=FINISHED,
        started=written,
        ended=written,
        tags={
            "iakd.key": f"report:{dataset}",
            "iakd.path": report.path,
            "iakd.dataset": dataset,
            "iakd.stage": "report",
            "mlflow.source.name": "iakd report",
            "mlflow.note.content": f"Comparison of the methods on {dataset}: open report.html in the artifacts.",
        },
        artifacts=_artifacts(report, {}),
    )


def milliseconds(time: str) -> int:
    """Convert an ISO 8601 time to ms since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def allowed_name(name: str) -> str:
    """Replace the characters that MLflow refuses in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def flat_params(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted names and short texts."""
    result: dict[str, str] = {}
    for name, value in settings.items():
        dotted = allowed_name(f"{prefix}{name}")
        if isinstance(value, dict) and value:
            result |= flat_params(value, f"{dotted}.")
        else:
            result[dotted] = (value if isinstance(value, str) else json.dumps(value))[:MAX_PARAMETER_LENGTH]
    return result


def flat_numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers among nested values by dotted name; lists and texts are ignored."""
    result: dict[str, float] = {}
    for name, value in values.items():
        dotted = allowed_name(f"{prefix}{name}")
        if isinstance(value, dict):
            result |= flat_numbers(value, f"{dotted}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result[dotted] = float(value)
    return result
