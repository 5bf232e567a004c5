"""The files of a training: live ones in .state/<path>/ while it runs, finished ones in results/<path>/.

`run.json` is written last. MLflow's view of a run is made from these files; the training never waits for it.
"""

import contextlib
import csv
import io
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Network
from iakd.errors import UserError
from iakd.experiment.jobs import RESULTS, STATE, Experiment, TeacherJob
from iakd.experiment.provenance import machine, provenance
from iakd.seeding import derive

Row = dict[str, float | int | None]
SECONDS_BETWEEN_LOGS = 1.0
LOG_SHARE = 0.02  # of a training's time, at most, for its live history
SECONDS_FOR_ORPHANS = 60.0  # for the jobs of a killed workflow, which end by themselves, with a checkpoint

log = logging.getLogger(__name__)

# Every file of a result, except those of the data (iakd.data.store).
RUN, HISTORY, METRICS, MODEL = "run.json", "history.csv", "metrics.json", "model.safetensors"  # of a training
PEER = "peer.safetensors"  # a second network that was trained with the student, beside its MODEL
EVALUATION = "evaluation.json"  # beside a model
BEST, TRIALS, JOURNAL = "best.yaml", "trials.csv", "study.journal"  # of a study, beside its RUN and HISTORY
SUMMARY, RUNS, ACCURACY, CURVES = "summary.csv", "runs.csv", "accuracy.csv", "curves.csv"  # of the comparison
SWAPPING = "swapping.json"  # of the comparison: what swapping added
HEADLINE, ROWS = "headline.json", "metrics"  # of the comparison, for DVC: the best method; a folder, a file per method
REPORT, TABLES, TABLES_TEXT, FIGURES = "report.html", "tables.csv", "tables.md", "figures"  # of the report
VERDICT = "verdict.txt"  # of the report: the outcome of each pair in two lines
LATEX, PARAGRAPH, BIBLIOGRAPHY = "tables.tex", "methods.tex", "references.bib"  # of the report, for a paper
RESULTS_FILE = "results.json"  # of the report: settings and results of all its models, for `iakd compare`
ONNX, INT8, PT2 = "model.onnx", "model-int8.onnx", "model.pt2"  # of an export, beside its MODEL
LABELS, PREPROCESSING, CARD = "labels.txt", "preprocessing.json", "README.md"  # of an export
ONNX_OF_BITS = "model-{}bit.onnx"  # of an export with several bit-widths: the lower ones
EXPORT, EXPORTED = "export.json", "exported.json"  # what is known of the files of an export; of a pair: its exports
LATENCY = "latency.json"  # beside the pairs: how fast all networks of the experiment run
LOCK = "lock"  # in the live folder


def precision(name: str, network: Network) -> str:
    """Return what an ONNX file of a network computes with: 'float32', 'int8', or as it was trained, '4 bits'."""
    if name == INT8:
        return "int8"
    bits = re.fullmatch(ONNX_OF_BITS.format(r"(\d+)"), name)
    trained = network.bit_widths[0] if network.bit_widths else network.bits
    return f"{bits[1]} bits" if bits else f"{trained} bits" if trained else "float32"


def merit(metrics: dict[str, Any]) -> tuple[float, float]:
    """Return accuracy and certainty on the validation images, from a training's metrics; more is better."""
    return metrics["val_top1"], -metrics.get("val_nll", 0.0)


def candidate(method: str, seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what exports record of each model from which they choose by `merit`."""
    return {"method": method, "seed": seed, "val_top1": metrics["val_top1"], "val_nll": metrics.get("val_nll")}


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Run:
    """One training, identified by `key`, a digest of everything that its outcome depends on.

    `about` names it for readers (dataset, teacher, student, method, trial …); `params` are its resolved settings;
    `inputs` are hashes of what it reads (the data, the teacher's weights).
    """

    path: str
    stage: str
    key: str
    params: dict[str, Any]
    seed: int
    about: dict[str, Any]
    inputs: dict[str, str]
    device: str = "cpu"
    started: str = ""
    seconds: float = 0.0  # spent by earlier, interrupted attempts

    def __post_init__(self) -> None:
        self.folder = RESULTS / self.path
        self.live = STATE / self.path
        self._since = time.monotonic()
        self._next_log = 0.0

    @property
    def finished(self) -> bool:
        """Whether results/<path>/ already holds this very run, complete and undamaged."""
        record = files.read_if_whole(self.folder / RUN)
        if record.get("key") != self.key:
            return False
        damaged = damaged_products(self.folder, record)
        if damaged:
            log.warning("%s: missing or damaged, made again", ", ".join(str(self.folder / name) for name in damaged))
        return not damaged

    @contextlib.contextmanager
    def open(self, patience: float | None = None) -> Iterator["Run"]:
        """Hold the run's lock and announce it as running; record the error if the block fails.

        Raises Busy if another process keeps this run open for more than `patience` seconds; default: as long as the
        jobs of a killed workflow may take to end. Raises OSError where its results could not be published.
        """
        files.check_writable(self.folder)
        self.live.mkdir(parents=True, exist_ok=True)
        with files.exclusive(
            self.live / LOCK,
            f"{self.live}: another process is working on this run; wait for it to end",
            SECONDS_FOR_ORPHANS if patience is None else patience,
        ):
            self.started = self.started or now()
            self._since = time.monotonic()
            for name in (MODEL, PEER, HISTORY, METRICS, RUN):
                files.remove_leftovers(self.folder / name)
            self._announce()
            try:
                yield self
            except BaseException as error:
                with contextlib.suppress(OSError):  # the error itself matters more than the record of it
                    self._announce(error=f"{type(error).__name__}: {error}")
                raise

    def wall_seconds(self) -> float:
        """Return the seconds spent on this run so far, interrupted attempts included."""
        return round(self.seconds + time.monotonic() - self._since, 3)

    def _record(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "stage": self.stage,
            **self.about,
            "seed": self.seed,
            "params": self.params,
            "inputs": self.inputs,
            "data_sha256": self.inputs.get("data"),
            **provenance(),
            "device": self.device,
            "machine": machine(),
            "started": self.started,
        }

    def _announce(self, **more: Any) -> None:
        files.write_json(self.live / RUN, {**self._record(), "pid": os.getpid(), **more})

    def log(self, history: list[Row]) -> None:
        """Write the live history, once a second at most, and seldom on a slow disk: epochs must not wait for disks."""
        began = time.monotonic()
        if began >= self._next_log:
            files.write_text(self.live / HISTORY, history_text(history))
            ended = time.monotonic()
            self._next_log = ended + max(SECONDS_BETWEEN_LOGS, (ended - began) / LOG_SHARE)

    def finish(
        self, history: list[Row], metrics: dict[str, Any], model: bytes | None = None, written: tuple[str, ...] = ()
    ) -> Path:
        """Publish the products, remove the live files and return the results folder."""
        self.publish(history, metrics, model, written=written)
        self.clear_live()
        return self.folder

    def publish(
        self,
        history: list[Row],
        metrics: dict[str, Any],
        model: bytes | None = None,
        peer: bytes | None = None,
        written: tuple[str, ...] = (),
    ) -> None:
        """Write the products; `run.json` is the last and makes the run finished.

        It has the hashes of all of them, with those that are `written` already.
        """
        (self.folder / RUN).unlink(missing_ok=True)  # of an older run: this folder is unfinished until the end
        record = {**self._record(), "finished": now(), "wall_seconds": self.wall_seconds()}
        if model is not None:
            files.write_bytes(self.folder / MODEL, model)
            record["model_sha256"] = files.sha256_bytes(model)
        if peer is not None:
            files.write_bytes(self.folder / PEER, peer)
            record["peer_sha256"] = files.sha256_bytes(peer)
        else:
            (self.folder / PEER).unlink(missing_ok=True)  # of an older run
        files.write_text(self.folder / HISTORY, history_text(history))
        files.write_json(self.folder / METRICS, metrics)
        record["sha256"] = {name: files.sha256_file(self.folder / name) for name in (HISTORY, METRICS, *written)}
        files.write_record(self.folder / RUN, record)

    def clear_live(self) -> None:
        """Remove this run's live files, but neither the lock nor the folders of nested runs (a study's trials).

        The live files of a run with other settings stay.
        """
        path = self.live / RUN
        if path.exists() and files.read_object(path, "delete it").get("key") != self.key:
            return
        for leftover in self.live.glob("*"):
            if leftover.is_file() and leftover.name != LOCK:
                leftover.unlink(missing_ok=True)


class WarmStartRun(Run):
    """The warm start of a run: a checkpoint under a key of its own in the run's folder, and nothing to publish."""

    @classmethod
    def of(cls, run: Run) -> "WarmStartRun":
        """Return the warm start of `run`, whose random streams are not the run's."""
        key, seed = files.digest([run.key, "warm start"]), derive("warm start", run.seed)
        path, live = f"{run.path}, warm start", run.live
        warm_start = cls(path, run.stage, key, run.params, seed, run.about, run.inputs, run.device, run.started)
        warm_start.live = live
        return warm_start

    def log(self, history: list[Row]) -> None:
        """Write nothing: the live history is that of the run itself."""


def teacher_run(
    experiment: Experiment, job: TeacherJob, data_sha256: str, device: str, checkpoint_sha256: str | None = None
) -> Run:
    """The run of a teacher: trained here, or imported from a checkpoint with this hash."""
    inputs, origin = {"data": data_sha256}, dict[str, Any]()
    if checkpoint_sha256 is not None:
        inputs["checkpoint"] = checkpoint_sha256
        origin["origin"] = job.network.origin if job.network.callable else job.network.checkpoint
    return Run(
        path=job.path,
        stage="teach",
        key=files.digest([job.key, inputs]),
        params=job.settings,
        seed=job.seed,
        about={
            "dataset": experiment.params.dataset.name,
            "teacher": job.network.name,
            "student": None,
            "method": "teacher",
            **origin,
        },
        inputs=inputs,
        device=device,
    )


def history_text(history: list[Row]) -> str:
    """Format a history as CSV; a value that was not measured in an epoch is empty."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return out.getvalue()


def read_history(path: Path) -> list[Row]:
    """Return the rows of a history.csv, with None for empty values.

    Raises UserError if the file is missing or damaged.
    """
    hint = "run the stage that makes it again (`iakd teach`, `iakd distill` or `iakd tune`)"
    try:
        return [{name: _number(cell) for name, cell in row.items()} for row in read_rows(path)]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {hint}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {hint}") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header. Raises ValueError for one that is damaged."""
    try:
        text = path.read_bytes().decode()
        if "\0" in text:
            raise ValueError("it has null bytes")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [dict(zip(header, row, strict=True)) for row in rows]
    except csv.Error as error:
        raise ValueError(error) from None


def _number(text: str) -> float | int | None:
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def damaged_products(folder: Path, record: dict[str, Any], only: tuple[str, ...] = ()) -> list[str]:
    """Return the products of a run that are missing or not those that its run.json, `record`, has the hashes of.

    `only`: look at no others.
    """
    hashes = {MODEL: record.get("model_sha256"), PEER: record.get("peer_sha256")}
    hashes = {name: sha256 for name, sha256 in hashes.items() if sha256}
    others = record.get("sha256") or {}
    if not isinstance(others, dict):
        return [RUN]
    return damaged_files(folder, hashes | others, only)


def damaged_files(folder: Path, hashes: dict[str, Any], only: tuple[str, ...] = ()) -> list[str]:
    """Return the files in `folder` that are missing or not those that the SHA-256 `hashes` are of.

    `only`: look at no others.
    """
    return [
        name
        for name, sha256 in hashes.items()
        if not only or name in only
        if not (folder / name).is_file() or files.sha256_file(folder / name) != sha256
    ]


def read_model(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the weights in `folder`, checked against the hash in its run.json, and that record.

    Raises UserError if one is missing or damaged.
    """
    hint = "train it again (delete the folder and rerun)"
    record = files.read_object(folder / RUN, hint, "params", "data_sha256", "model_sha256")
    if not isinstance(record["params"], dict):
        raise UserError(f"{folder / RUN} is damaged (its params are no object): {hint}")
    path = folder / MODEL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {hint}") from None
    if files.sha256_bytes(content) != record["model_sha256"]:
        raise UserError(f"{path} is damaged (its SHA-256 is not the one in {RUN}): {hint}")
    return content, record
