"""Step 3 of mirroring: read one run's files as MLflow shall show them (name, tags, parameters, metrics, artifacts)."""

import functools
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Recipe
from iakd.config.schedule import KINDS
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import (
    EVALUATION,
    EXPORT,
    FIGURES,
    HISTORY,
    METRICS,
    MODEL,
    PEER,
    REPORT,
    RUN,
    Row,
    read_history,
)
from iakd.tracking.scan import RunFiles

MAX_PARAMETER_LENGTH = 500  # characters, which every MLflow server accepts
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's words
NO_STEP = 0  # step of a number that a run has only one of: MLflow draws these as bars, others as curves
CLOCK_SKEW = 50  # ms by which a file's time may lag behind the clock
HINT = "train it again"
REPORT_KEY = "report:"  # start of the key of a data set's report
DIGEST = 12  # characters of a hash by which MLflow tells data sets apart; it allows 36

# What is in run.json, and would only fill MLflow's pages.
OTHER_RUNS = ("teacher", "study", "recipe_before_tuning", "first")  # settings, which those runs show themselves
SHOWN_ELSEWHERE = ("data", "seed")  # as a data set, as a tag
ALWAYS_SHOWN = ("epochs", "batch_size", "optimizer", "lr", "weight_decay")  # of a recipe; others where not the default
COUNTERS = ("epoch", "step", "trial", "seed", "cpu_seconds")  # columns of histories that say where, not what
COUNTS = ("epochs", "steps", "seeds", "trials", "best_trial", "complete", "pruned", "failed")  # tags: not to be drawn
OF_THE_NETWORK = ("parameters", "weight_bytes", "macs", "latency_ms")  # in evaluation.json; the rest is of the test set


@dataclass(frozen=True)
class MetricValue:
    """One value of a metric; `timestamp` in ms since 1970."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class DataSet:
    """A data set as MLflow shall show it: what `digest` is of, what a run uses it for, where it is, what is in it."""

    name: str
    digest: str
    context: str  # training or testing
    source: str
    schema: dict[str, Any] | None = None
    profile: dict[str, int] = field(default_factory=dict, hash=False)


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
    data: list[DataSet] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # all of them, as in run.json
    study: str | None = None  # the key of the study that it is part of

    @property
    def last_epoch(self) -> int:
        """The last epoch of the history; 0 if it has none."""
        return max((value.step for value in self.history), default=0)

    @property
    def parent(self) -> str | None:
        """The path of the study that this run is a trial of, or of the trial that it is a seed of."""
        study, separator, trial = self.path.rpartition("/trials/")
        number, nested, _ = trial.partition("/")
        return (f"{study}/trials/{number}" if nested else study) if separator else None


@dataclass(frozen=True)
class ModelContent:
    """An exported model as MLflow shall show it: a folder of files, and what is known of them."""

    key: str
    name: str
    folder: Path
    pair: str
    student: str  # the path of the run that trained it
    model_sha256: str
    record: dict[str, Any] = field(hash=False)  # export.json
    tags: dict[str, str] = field(hash=False)


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
            params=shown_params(record.get("params", {}), record["stage"]),
            data=_data_sets(record),
            settings=record.get("params", {}),
            study=record.get("study"),
        )
        if not run.live:
            content.ended = milliseconds(record["finished"])
            seconds = record.get("wall_seconds")
            if seconds is not None:
                content.results[RUN] = [MetricValue("wall_seconds", float(seconds), content.ended, NO_STEP)]
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
    """Return a name that no other run of the same data has, except for one with other settings or sources."""
    folder = path.rpartition("/")[2]
    pair, method = _pair_name(record), record.get("method")
    epochs = record.get("params", {}).get("recipe", {}).get("epochs")
    match record["stage"]:
        case "trial":
            parts = [f"{method} trial {record.get('trial', folder)}", pair]
        case "trial_seed":
            parts = [f"{method} trial {record['trial']} seed {record['trial_seed']}", pair]
        case "tune":
            parts = [f"study {method or folder}", pair]
        case "teach":
            parts = [f"teacher {record.get('teacher')} seed {record['seed']}"]
        case _:
            parts = [f"{method or path} seed {record['seed']}", pair]
    return ", ".join(part for part in (*parts, epochs and f"{epochs} epochs") if part)


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
        "iakd.group": ", ".join(filter(None, (record.get("method"), _pair_name(record)))),
        "iakd.data_sha256": record.get("data_sha256"),
        "iakd.git_commit": commit,
        "iakd.device": record.get("device"),
        "iakd.model_sha256": record.get("model_sha256"),
        "mlflow.runName": _name(record, path),
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
            if name not in COUNTERS and value is not None
        ]
    return values


def _add_results(content: RunContent, run: RunFiles, times: dict[str, int]) -> None:
    """Add the numbers of evaluation.json, and those of metrics.json that the last epoch did not show already."""
    last_epoch = content.last_epoch
    shown = {value.name: value.value for value in content.history if value.step == last_epoch}
    curves = {value.name for value in content.history}
    if METRICS in times:
        metrics = _read_object(run.folder / METRICS)
        if isinstance(metrics.get("state"), str):
            content.tags["iakd.state"] = metrics["state"]
            if metrics["state"] == "failed":
                content.status = FAILED
        content.tags |= {f"iakd.{name}": str(metrics[name]) for name in COUNTS if metrics.get(name) is not None}
        content.results[METRICS] = [
            MetricValue(name, value, content.ended or times[METRICS], last_epoch if name in curves else NO_STEP)
            for name, value in flat_numbers(metrics).items()
            if shown.get(name) != value and name not in COUNTS
        ]
    if EVALUATION in times:
        evaluation = _read_object(run.folder / EVALUATION)
        evaluation.pop("seed", None)
        content.results[EVALUATION] = [
            MetricValue(name if name in OF_THE_NETWORK else f"test_{name}", value, times[EVALUATION], NO_STEP)
            for name, value in flat_numbers(evaluation).items()
        ]
        content.data += _test_set(content.data)


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
    known = _known_data(dataset)
    return RunContent(
        key=f"{REPORT_KEY}{dataset}",
        name=f"report {dataset}",
        path=report.path,
        status=FINISHED,
        started=written,
        ended=written,
        tags={
            "iakd.key": f"{REPORT_KEY}{dataset}",
            "iakd.path": report.path,
            "iakd.dataset": dataset,
            "iakd.stage": "report",
            "mlflow.runName": f"report {dataset}",
            "mlflow.source.name": "iakd report",
            "mlflow.note.content": f"Comparison of the methods on {dataset}: open report.html in the artifacts.",
        },
        artifacts=_artifacts(report, {}),
        data=_test_set(_data_sets({"dataset": dataset, "data_sha256": known["sha256"]})) if known else [],
    )


def _data_sets(record: dict[str, Any]) -> list[DataSet]:
    """Return the data of a run. Of data that are no longer on disk, only name and hash are known."""
    name, sha256 = record.get("dataset"), record.get("data_sha256")
    if not name or not sha256:
        return []
    source = record.get("params", {}).get("data", {}).get("path") or str(RESULTS / name / "data")
    known = _known_data(name)
    if not known or known.get("sha256") != sha256:
        return [DataSet(name, sha256[:DIGEST], "training", source)]
    rows = {split: known["splits"][split]["n"] for split in ("train", "val")}
    return [
        DataSet(name, sha256[:DIGEST], "training", source, _schema(known), _profile(known, sum(rows.values()), rows))
    ]


def _test_set(data: list[DataSet]) -> list[DataSet]:
    """Return the test images of data that are on disk."""
    found = []
    for dataset in data:
        known = _known_data(dataset.name)
        if known and known["sha256"][:DIGEST] == dataset.digest:
            test = known["splits"]["test"]
            name, digest = f"{dataset.name} test", str(test["sha256"])[:DIGEST]
            found.append(
                DataSet(name, digest, "testing", dataset.source, _schema(known), _profile(known, test["n"], {}))
            )
    return found


def _schema(manifest: dict[str, Any]) -> dict[str, Any]:
    image = manifest["image"]
    shape = [-1, image["channels"], image["height"], image["width"]]
    features = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}]
    targets = [{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]
    return {"mlflow_tensorspec": {"features": json.dumps(features), "targets": json.dumps(targets)}}


def _profile(manifest: dict[str, Any], rows: int, more: dict[str, int]) -> dict[str, int]:
    image = manifest["image"]
    elements = rows * image["channels"] * image["height"] * image["width"]
    return {"num_rows": rows, "num_elements": elements, "classes": len(manifest["classes"]), **more}


def _known_data(name: str) -> dict[str, Any] | None:
    """Return the manifest of a data set, None if it is missing or unusable: the view of a run does not depend on it."""
    path = RESULTS / name / "data" / MANIFEST
    try:
        return _read_manifest(path, path.stat().st_mtime_ns)
    except (OSError, UserError, KeyError, TypeError):
        return None


@functools.lru_cache(maxsize=4)
def _read_manifest(path: Path, changed: int) -> dict[str, Any]:
    """Return what the views need of a manifest that `changed` then; the whole can have a million positions."""
    manifest = files.read_object(path, "run `iakd prepare`")
    return {
        **{name: manifest[name] for name in ("sha256", "image", "classes")},
        "splits": {name: {key: split[key] for key in ("n", "sha256")} for name, split in manifest["splits"].items()},
    }


def read_model(export: RunFiles) -> ModelContent:
    """Read an exported model. Raises UserError if one of its files is damaged, OSError if they change meanwhile."""
    path = export.folder / EXPORT
    record = _read_object(path)
    hint = f"delete {export.folder}, then run `iakd export`"
    try:
        dataset, pair, method, seed = (record[name] for name in ("dataset", "pair", "method", "seed"))
        for name, sha256 in record["files"].items():
            if files.sha256_file(export.folder / name) != sha256:
                raise UserError(f"{export.folder / name} was altered (its SHA-256 is not the one in {EXPORT}): {hint}")
        tags = {
            **{f"iakd.{name}": str(record[name]) for name in ("dataset", "pair", "method", "seed", "model_sha256")},
            "iakd.key": f"export:{record['key']}",
            "iakd.path": export.path,
            "iakd.data_sha256": str(record["data_sha256"]),
            "iakd.val_top1": str(record["val_top1"]),
        }
        return ModelContent(
            key=tags["iakd.key"],
            name=re.sub(r"[/:.%\"']", "_", f"{method} seed {seed}, {pair}"),
            folder=export.folder,
            pair=str(pair),
            student=f"{dataset}/students/{pair}/{method}/seed{seed}",
            model_sha256=str(record["model_sha256"]),
            record=record,
            tags=tags,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {hint}") from None


def milliseconds(time: str) -> int:
    """Convert an ISO 8601 time to ms since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def allowed_name(name: str) -> str:
    """Replace the characters that MLflow refuses in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def shown_params(settings: dict[str, Any], stage: str) -> dict[str, str]:
    """Return the settings by which runs differ, flat and named as in params.yaml and trials.csv.

    Of a recipe, what is not the default and the most important; of a method, all that it uses. run.json has the rest.
    """
    unseen = {*OTHER_RUNS, *SHOWN_ELSEWHERE} | (set() if stage == "tune" else {"tune"})
    shown = {name: value for name, value in settings.items() if name not in unseen}
    method = shown.pop("method", None)
    if isinstance(method, dict):
        shown |= {name: value for name, value in method.items() if name != "tune"}
        schedule = method.get("iakd", {}).get("schedule")
        if isinstance(schedule, dict) and schedule.get("kind") in KINDS:
            used = {"kind", "p0", "slope", "student_only", *KINDS[schedule["kind"]].settings}
            shown["iakd"] = {**method["iakd"], "schedule": {name: schedule[name] for name in schedule if name in used}}
        if stage == "tune":
            shown["space"] = {name: _without_nulls(what) for name, what in method.get("tune", {}).items()}
    if isinstance(shown.get("network"), dict):  # whose name is a tag
        shown["network"] = {name: value for name, value in shown["network"].items() if name != "name"}
    recipe = shown.pop("recipe", None)
    if isinstance(recipe, dict):
        usual = flat_params(Recipe().model_dump(mode="json"))
        flat = flat_params(recipe)
        shown["recipe"] = {k: v for k, v in flat.items() if k in ALWAYS_SHOWN or usual.get(k) != v}
    return {name: value for name, value in flat_params(shown).items() if value not in ("null", "{}")}


def _without_nulls(space: Any) -> Any:
    """Return what is set in a searched setting, as one text."""
    if not isinstance(space, dict):
        return space
    return json.dumps({name: value for name, value in space.items() if value not in (None, False, {})})


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
