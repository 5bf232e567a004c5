"""What MLflow is told about a run: names, tags, parameters and metrics, made from the run's files alone."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from iakd import files
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import HISTORY, METRICS, MODEL, RUN, Row, read_history
from iakd.tracking.scan import EVALUATION, FIGURES, REPORT, Found

VALUE = 500  # characters of a parameter that every MLflow server takes
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's words
ONCE = 0  # the step of a number that a run has only one of: MLflow draws these as bars, others as curves
CLOCKS = 50  # ms by which a file's time may lag behind the clock
HINT = "train it again"


@dataclass(frozen=True)
class Point:
    """One value of a metric; `timestamp` in ms since 1970."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass
class Content:
    """A run as MLflow shall show it; times in ms since 1970."""

    key: str
    name: str
    path: str
    status: str
    started: int
    ended: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    rows: list[Point] = field(default_factory=list)  # per epoch
    results: dict[str, list[Point]] = field(default_factory=dict)  # by the file that they come from
    artifacts: dict[str, str] = field(default_factory=dict)  # name in the run's folder -> digest of its content

    @property
    def parent(self) -> str | None:
        """The path of the study that this run is a trial of."""
        study, separator, _ = self.path.rpartition("/trials/")
        return study if separator else None


def read(found: Found) -> Content:
    """Read a run's files. Raises UserError where one is damaged, OSError where they change meanwhile."""
    if found.report:
        return _report(found)
    content = _run(found)
    if (found.folder / RUN).stat().st_mtime_ns != found.stamps[0][1]:  # goes first when another run takes the folder
        raise FileNotFoundError(f"{found.folder} changed while it was read")
    return content


def _run(found: Found) -> Content:
    record = _object(found.folder / RUN)
    try:
        content = Content(
            key=str(record["key"]),
            name=_name(record, found.path),
            path=found.path,
            status=_live_status(found, record) if found.live else FINISHED,
            started=milliseconds(record["started"]),
            tags=_tags(record, found.path),
            params=flat(record.get("params", {})),
        )
        if not found.live:
            content.ended = milliseconds(record["finished"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{found.folder / RUN} is damaged ({type(error).__name__}: {error}): {HINT}") from None
    times = {name: nanoseconds // 10**6 for name, nanoseconds, _ in found.stamps}
    if content.status in (KILLED, FAILED):
        content.ended = max(times.values())
    stale = found.live and times.get(HISTORY, 0) + CLOCKS < content.started  # of an earlier run in this folder
    if HISTORY in times and not stale:
        rows = _history(found.folder / HISTORY)
        content.rows = _row_points(rows, content.started, content.ended or times[HISTORY])
    if not found.live:
        _add_results(content, found, times)
        content.artifacts = _artifacts(found, {MODEL: record.get("model_sha256")})
    return content


def _history(path: Path) -> list[Row]:
    path.stat()
    try:
        return read_history(path)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): {HINT}") from None


def _live_status(found: Found, record: dict[str, Any]) -> str:
    if found.held:
        return RUNNING
    error = record.get("error")
    return FAILED if error and not str(error).startswith("KeyboardInterrupt") else KILLED


def _name(record: dict[str, Any], path: str) -> str:
    match record["stage"]:
        case "trial":
            return f"trial {record.get('trial', path.rpartition('/')[2])}"
        case "tune":
            return f"study {_pair(record) or path.rpartition('/')[2]}"
        case "teach":
            return f"{record.get('teacher')} seed {record['seed']}"
        case _:
            return f"{record.get('method') or path} seed {record['seed']}"


def _pair(record: dict[str, Any]) -> str | None:
    teacher, student = record.get("teacher"), record.get("student")
    return f"{teacher}-{student}" if teacher and student else None


def _tags(record: dict[str, Any], path: str) -> dict[str, str]:
    commit = record.get("git_commit")
    about = {name: record.get(name) for name in ("dataset", "stage", "teacher", "student", "method", "trial", "seed")}
    tags = {
        **{f"iakd.{name}": value for name, value in about.items()},
        "iakd.key": record["key"],
        "iakd.path": path,
        "iakd.pair": _pair(record),
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
    what = {
        "teach": f"Teacher {teacher}",
        "tune": f"Search for the swap-probability schedule of {teacher} → {student}",
        "trial": f"Trial of a schedule for {teacher} → {student}",
    }.get(record["stage"], f"Student {student} of teacher {teacher}, trained by {method}")
    return f"{what}, on {record.get('dataset')}. Files: `{RESULTS / path}/`"


def _row_points(rows: list[Row], started: int, latest: int) -> list[Point]:
    """The measured values of each epoch; `step` is the epoch, the time grows with the epochs' seconds."""
    points, elapsed = [], 0.0
    for position, row in enumerate(rows, 1):
        elapsed += row.get("seconds") or 0.0
        step = int(row.get("epoch") or position)
        time = max(started, min(started + round(1000 * elapsed), latest))
        points += [
            Point(legal(name), float(value), time, step)
            for name, value in row.items()
            if name != "epoch" and value is not None
        ]
    return points


def _add_results(content: Content, found: Found, times: dict[str, int]) -> None:
    """The numbers of metrics.json, where the last epoch did not show them already, and of evaluation.json."""
    last = max((point.step for point in content.rows), default=0)
    shown = {point.name: point.value for point in content.rows if point.step == last}
    curves = {point.name for point in content.rows}
    if METRICS in times:
        metrics = _object(found.folder / METRICS)
        if isinstance(metrics.get("state"), str):
            content.tags["iakd.state"] = metrics["state"]
            if metrics["state"] == "failed":
                content.status = FAILED
        content.results[METRICS] = [
            Point(name, value, content.ended or times[METRICS], last if name in curves else ONCE)
            for name, value in numbers(metrics).items()
            if shown.get(name) != value
        ]
    if EVALUATION in times:
        evaluation = _object(found.folder / EVALUATION)
        evaluation.pop("seed", None)
        content.results[EVALUATION] = [
            Point(f"test_{name}", value, times[EVALUATION], ONCE) for name, value in numbers(evaluation).items()
        ]


def _object(path: Path) -> dict[str, Any]:
    path.stat()  # a file that is gone is no damage
    value = files.read_json(path, HINT)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (no names in it): {HINT}")
    return value


def _artifacts(found: Found, known: dict[str, str | None]) -> dict[str, str]:
    """A digest of each file, and one for the folder of figures."""
    digests: dict[str, str] = {}
    figures: dict[str, str] = {}
    for name in found.names():
        group = figures if name.startswith(f"{FIGURES}/") else digests
        group[name] = (known.get(name) or files.sha256_file(found.folder / name))[:16]
    return {**digests, FIGURES: files.digest(figures)[:16]} if figures else digests


def _report(found: Found) -> Content:
    dataset = found.path.partition("/")[0]
    times = {name: nanoseconds // 10**6 for name, nanoseconds, _ in found.stamps}
    return Content(
        key=f"report:{dataset}",
        name="report",
        path=found.path,
        status=FINISHED,
        started=times[REPORT],
        ended=times[REPORT],
        tags={
            "iakd.key": f"report:{dataset}",
            "iakd.path": found.path,
            "iakd.dataset": dataset,
            "iakd.stage": "report",
            "mlflow.source.name": "iakd report",
            "mlflow.note.content": f"The comparison on {dataset}: open report.html among the artifacts.",
        },
        artifacts=_artifacts(found, {}),
    )


def milliseconds(time: str) -> int:
    """An ISO 8601 time as ms since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def legal(name: str) -> str:
    """`name` with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and short texts."""
    result: dict[str, str] = {}
    for name, value in settings.items():
        dotted = legal(f"{prefix}{name}")
        if isinstance(value, dict) and value:
            result |= flat(value, f"{dotted}.")
        else:
            result[dotted] = (value if isinstance(value, str) else json.dumps(value))[:VALUE]
    return result


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among nested values, by dotted name; lists and texts are left to the file."""
    result: dict[str, float] = {}
    for name, value in values.items():
        dotted = legal(f"{prefix}{name}")
        if isinstance(value, dict):
            result |= numbers(value, f"{dotted}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            result[dotted] = float(value)
    return result
