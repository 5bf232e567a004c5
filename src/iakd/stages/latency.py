"""Measure how fast all networks of an experiment run: reads the trained and the exported models, writes
results/<dataset>/export/latency.json."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Network
from iakd.data.store import PreparedData
from iakd.errors import RunFailed
from iakd.evaluation.record import network_key, read_evaluation, read_exported
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob
from iakd.experiment.provenance import machine
from iakd.stages.export import graphs

log = logging.getLogger(__name__)


def run(experiment: Experiment) -> Path:
    """Measure every network once in each precision, one after the other, unless these very files have been measured.

    What differs in weights only takes the same time and space, so one model stands for all seeds, methods and pairs
    with the same network: an exported one, if there is one. Nothing else should run on the machine meanwhile. Raises
    UserError if a model, its evaluation or an export is missing.
    """
    path = experiment.export_folder / run_dir.LATENCY
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    exported = _exported(experiment)
    wanted: list[tuple[dict[str, Any], Path]] = []
    left_out: list[dict[str, Any]] = []
    networks = _networks(experiment)
    for same in networks:
        about = {"network": same.network.name, "of": same.names}
        try:
            found = _files(experiment, same, exported, store)
        except RunFailed as error:
            log.warning("%s is not measured: %s", same.network.name, error)
            left_out.append({**about, "reason": str(error)})
            continue
        for file in found:
            precision = run_dir.precision(file.name, same.network)
            sha256, size = files.sha256_file(file), file.stat().st_size
            wanted.append(({**about, "precision": precision, "bytes": size, "sha256": sha256}, file))
    threads = experiment.params.compute.threads
    of = {"threads": threads, "onnxruntime": version("onnxruntime"), **machine(), "left_out": left_out}
    of["networks"] = networks_sha256(experiment)
    if _is_of(files.read_if_whole(path), of, wanted):
        log.info("%s: already measured", path)
        return path
    models = [{**about, **_measure(file, threads)} for about, file in wanted]
    files.write_record(path, {**of, "measured": run_dir.now(), "models": models})
    _tidy(experiment.graphs, [file for _, file in wanted])
    return path


@dataclass(frozen=True)
class SameNetwork:
    """Trained models that are the same network with other weights; `names`: PAIR/METHOD, or a teacher."""

    key: str
    network: Network
    jobs: list[TeacherJob | StudentJob]

    @property
    def names(self) -> list[str]:
        """What of the experiment it is."""
        names = (j.network.name if isinstance(j, TeacherJob) else f"{j.pair}/{j.label}" for j in self.jobs)
        return list(dict.fromkeys(names))

    def folders(self, exported: dict[str, Path]) -> list[Path]:
        """The folders of its exports, among all that are `exported`, by the paths of their jobs."""
        return [exported[job.path] for job in self.jobs if job.path in exported]


def _networks(experiment: Experiment) -> list[SameNetwork]:
    found: dict[str, SameNetwork] = {}
    for job in experiment.trained:
        evaluation = read_evaluation(job.folder / run_dir.EVALUATION, f"run `iakd evaluate --run {job.folder}`")
        network = job.network if isinstance(job, TeacherJob) else job.student
        key = network_key(network, evaluation)
        found.setdefault(key, SameNetwork(key, network, [])).jobs.append(job)
    return list(found.values())


def networks_sha256(experiment: Experiment) -> str:
    """Return the hash that a latency.json of the present networks and precisions has, whatever their weights.

    Raises UserError if an evaluation or an export is missing.
    """
    exported, found = _exported(experiment), []
    for same in _networks(experiment):
        graphs_of_exports = {path.name for folder in same.folders(exported) for path in folder.glob("*.onnx")}
        found.append([same.key, same.names, sorted(graphs_of_exports)])
    return files.digest(found)


def _exported(experiment: Experiment) -> dict[str, Path]:
    """Return the folders of the exported models, by the paths of their jobs."""
    found = {}
    for job in experiment.exports:
        again = f"run `iakd export --pair {job.pair}`"
        models = read_exported(job.folder / run_dir.EXPORTED, again)
        folders = {(model["method"], model["seed"]): job.folder / model["folder"] for model in models}
        for student in job.students:
            if (student.label, student.seed) in folders:
                found[student.path] = folders[student.label, student.seed]
    return found


def _files(experiment: Experiment, same: SameNetwork, exported: dict[str, Path], store: PreparedData) -> list[Path]:
    """Return ONNX files of a network, one of each precision. Raises RunFailed if torch cannot make them."""
    found: dict[str, Path] = {}
    for folder in same.folders(exported):
        for path in sorted(folder.glob("*.onnx")):
            found.setdefault(path.name, path)
    return list((found or graphs(experiment, same.jobs[0], store)).values())


def _is_of(measured: dict[str, Any], of: dict[str, Any], wanted: list[tuple[dict[str, Any], Path]]) -> bool:
    models = measured.get("models", [])
    return (
        of.items() <= measured.items()
        and len(models) == len(wanted)
        and all(about.items() <= model.items() for (about, _), model in zip(wanted, models, strict=True))
    )


def _measure(path: Path, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "iakd.export.latency", str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise RunFailed(f"{path} cannot be measured: {reason}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _tidy(folder: Path, used: list[Path]) -> None:
    """Remove the graphs of earlier weights."""
    for old in folder.glob("*"):
        if not any(file.is_relative_to(old) for file in used):
            shutil.rmtree(old)
