"""Measure how fast exported models run, beside their teacher: reads results/<dataset>/export/<pair>/, writes its
latency.json."""

import json
import logging
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iakd import files
from iakd.data.store import PreparedData
from iakd.errors import RunFailed
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, ExportJob
from iakd.processes import cores
from iakd.stages.export import teacher_graph

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: ExportJob) -> Path:
    """Measure the exported models of a pair one after the other, unless these very files have been measured already.

    Nothing else should run on the machine meanwhile. Raises UserError if they are not exported yet.
    """
    path = job.folder / run_dir.LATENCY
    models = list(_models(job))
    threads = experiment.params.compute.threads
    of = {"threads": threads, "cpu": _processor(), "files": {model["file"]: model["sha256"] for model in models}}
    if path.exists() and of.items() <= files.read_object(path, "delete it, then run `iakd latency`").items():
        log.info("%s: already measured", path)
        return path
    measured = [{**model, **_measure(job.folder / model["file"], threads)} for model in models]
    measured += _teacher(experiment, job, threads)
    files.write_json(path, {**of, "cores": cores(), "measured": run_dir.now(), "models": measured})
    return path


def _models(job: ExportJob) -> Iterator[dict[str, Any]]:
    """Yield every ONNX file of the pair, with what its export says of it."""
    again = f"run `iakd export --pair {job.pair}`"
    for model in files.read_object(job.folder / run_dir.EXPORTED, again, "models")["models"]:
        folder = job.folder / model["folder"]
        record = files.read_object(folder / run_dir.EXPORT, again, "files")
        for name, sha256 in sorted(record["files"].items(), key=lambda file: file[0] != run_dir.ONNX):
            if not name.endswith(".onnx"):
                continue
            evaluation = _evaluation(record, name)
            yield {
                "role": "student",
                "method": model["method"],
                "seed": model["seed"],
                "file": f"{model['folder']}/{name}",
                "sha256": sha256,
                "bytes": (folder / name).stat().st_size,
                "top1": evaluation["top1"],
            }


def _evaluation(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the evaluation of one of the ONNX files of an export."""
    if name == run_dir.INT8:
        return dict(record["int8"]["evaluation"])
    bits = re.fullmatch(r"model-(\d+)bit\.onnx", name)
    return dict(record["evaluation"]["bit_widths"][bits[1]] if bits else record["evaluation"])


def _teacher(experiment: Experiment, job: ExportJob, threads: int) -> list[dict[str, Any]]:
    """Measure the teacher of the first exported model; nothing if it cannot become an ONNX file."""
    first = files.read_json(job.folder / run_dir.EXPORTED, "export again")["models"][0]
    student = next(s for s in job.students if (s.label, s.seed) == (first["method"], first["seed"]))
    teacher = student.teacher
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    try:
        path = teacher_graph(job, teacher, store)
    except RunFailed as error:
        log.info("the teacher is not measured: %s", error)
        return []
    evaluation = files.read_json(teacher.folder / run_dir.EVALUATION, f"run `iakd evaluate --run {teacher.folder}`")
    about = {"role": "teacher", "method": None, "seed": teacher.seed, "file": None, "bytes": path.stat().st_size}
    return [{**about, "top1": evaluation["top1"], **_measure(path, threads)}]


def _measure(path: Path, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "iakd.export.latency", str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise RunFailed(f"{path} cannot be measured: {reason}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
