"""Results are accepted by content only if they are what would be made now, complete and undamaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from iakd import files
from iakd.config import parse
from iakd.evaluation import made_from
from iakd.evaluation.metrics import pack
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, Job, StudentJob, TeacherJob, plan_experiment
from iakd.orchestration.stale_results import OnDisk
from iakd.stages import latency, prepare

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "toy", "source": "digits", "val": 60, "test": 100},
    "teachers": [{"arch": "resnet14", "name": "big"}],
    "students": [{"arch": "resnet8", "name": "small"}],
    "methods": {"scratch": {}, "kd": {}, "iakd": {"iakd": {"schedule": "tuned"}}},
    "distill": {"seeds": [0, 1]},
    "tune": {"trials": 3},
}
FOUND = {"iakd": {"method": "iakd", "iakd": {"schedule": {"kind": "uniform", "p0": 0.3}}}}
KD, TUNED = "students/big-small/kd/seed1", "students/big-small/iakd/seed0"


def plan_of(**changes: Any) -> Experiment:
    return plan_experiment(parse({**SETTINGS, **changes}, "test"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all results of SETTINGS, of random numbers instead of trainings."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = plan_of()
        prepare.run(experiment)
        data = {"data": json.loads((experiment.data.folder / "manifest.json").read_text())["sha256"]}
        teacher = experiment.teachers[0]
        publish(teacher, files.digest([teacher.key, data]), data, teacher.settings)
        taught = {**data, "teacher": json.loads((teacher.folder / "run.json").read_text())["model_sha256"]}
        study = experiment.studies[0]
        for name, text in (("best.yaml", yaml.safe_dump(FOUND)), ("trials.csv", "number\n"), ("study.journal", "")):
            files.write_text(study.folder / name, text)
        publish(study, files.digest([study.key, taught]), taught, study.settings, {"trials": 3})
        for job in experiment.students:
            found = OnDisk(experiment).as_found(job)
            assert found is not None
            inputs = taught if job.method.needs_teacher else data
            publish(job, found.training_key(inputs, job.seed, job.path), inputs, {**job.settings, **found.used})
        for trained in experiment.trained:
            evaluate(experiment, trained, data["data"])
        files.write_text(experiment.evaluation / "metrics.json", "{}")
        made_from.comparison(experiment).record()
        export(experiment)
        files.write_text(experiment.report / "report.html", "<html>")
        files.write_text(experiment.report / "figures" / "accuracy.svg", "<svg>")
        made_from.report(experiment).record()
    return folder


def publish(
    job: Job, key: str, inputs: dict[str, str], params: dict[str, Any], metrics: dict[str, Any] | None = None
) -> None:
    model = None if metrics else job.path.encode()
    written = ("best.yaml", "trials.csv", "study.journal") if metrics else ()
    run = run_dir.Run(job.path, job.stage, key, params, 0, {}, inputs, started=run_dir.now())
    run.publish([{"epoch": 1}], metrics or {"val_top1": 90.0, "val_nll": 0.5}, model, written=written)


def evaluate(experiment: Experiment, job: TeacherJob | StudentJob, data: str) -> None:
    model = json.loads((job.folder / "run.json").read_text())["model_sha256"]
    content = {
        "dataset": "toy",
        "teacher": "big",
        "student": "small",
        "method": "m",
        "seed": job.seed,
        "model_sha256": model,
        "data_sha256": data,
        "key": made_from.evaluation_key(experiment, model, data),
        "top1": 50.0,
        "top5": 100.0,
        "nll": 1.0,
        "ece": 0.1,
        "n": 2,
        "correct": pack(np.array([True, False])),
        "per_class_top1": [50.0],
        "confusion": [[2]],
        "calibration": {"n": [2], "confidence": [0.5], "top1": [0.5]},
        "parameters": 1,
        "weight_bytes": 4,
        "macs": 1,
        "latency_ms": 1.0,
        "images_per_s": 1.0,
    }
    files.write_record(job.folder / "evaluation.json", content)


def export(experiment: Experiment) -> None:
    job = experiment.exports[0]
    student = job.students[0]
    trained = json.loads((student.folder / "run.json").read_text())
    folder, key = job.folder / student.label, job.model_key(trained)
    files.write_bytes(folder / "model.onnx", b"onnx")
    hashes = {"model.onnx": files.sha256_bytes(b"onnx")}
    evaluation = files.digest(json.loads((student.folder / "evaluation.json").read_text()))
    files.write_record(folder / "export.json", {"key": key, "evaluation_sha256": evaluation, "files": hashes})
    model = {"method": student.label, "seed": student.seed, "folder": student.label, "key": key}
    candidates = [{"method": one.label, "seed": one.seed, "val_top1": 90.0, "val_nll": 0.5} for one in job.students]
    index = {"params": job.settings, "candidates": candidates, "models": [model]}
    files.write_record(job.folder / "exported.json", index)
    measured = {"networks": latency.networks_sha256(experiment)}
    files.write_record(experiment.export_folder / "latency.json", measured)


PRODUCTS = {
    "data": ["data/manifest.json"],
    "teacher": ["teachers/big/seed0/run.json", "teachers/big/seed0/model.safetensors"],
    "study": ["tune/big-small/iakd/best.yaml", "tune/big-small/iakd/run.json"],
    "scratch": ["students/big-small/scratch/seed0/run.json", "students/big-small/scratch/seed1/run.json"],
    "kd": ["students/big-small/kd/seed0/run.json", "students/big-small/kd/seed1/run.json"],
    "tuned": [f"{TUNED}/run.json"],
    "evaluation": [f"{KD}/evaluation.json"],
    "export": ["export/big-small/exported.json"],
    "latency": ["export/latency.json"],
    "comparison": ["evaluation/summary.csv", "evaluation/metrics.json"],
    "report": ["report/report.html", "report/tables.csv"],
}


def fitting(experiment: Experiment) -> set[str]:
    """What fits, of the products of the workflow's jobs."""
    on_disk = OnDisk(experiment)
    return {name for name, paths in PRODUCTS.items() if on_disk.fit([Path("results/toy", path) for path in paths])}


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results, at another time, in the current folder."""
    shutil.copytree(made / "results", tmp_path / "results", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results/toy"


def test_results_of_these_settings_fit_whatever_their_dates(copy: Path) -> None:
    assert fitting(plan_of()) == set(PRODUCTS)


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def of_others(**changes: Any) -> Callable[[Path], None]:
    """Another whole record."""
    return lambda path: files.write_record(path, {**json.loads(path.read_text()), **changes})


def entry(**changes: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes})) and None


@pytest.mark.parametrize(
    ("file", "change", "unfit"),
    [
        ("data/manifest.json", of_others(key="of other sources"), "data report"),
        ("data/val.labels.npy", Path.unlink, "data"),
        ("teachers/big/seed0/run.json", of_others(key="of other sources"), "teacher report comparison"),
        ("teachers/big/seed0/model.safetensors", text("damaged"), "teacher"),
        ("teachers/big/seed0/history.csv", text("damaged"), "teacher"),
        ("teachers/big/seed0/run.json", text("{"), "teacher study kd tuned report comparison"),
        ("tune/big-small/iakd/study.journal", Path.unlink, "study"),
        ("tune/big-small/iakd/best.yaml", text(yaml.safe_dump({"iakd": {"method": "iakd"}})), "study tuned report"),
        (f"{KD}/run.json", of_others(inputs={"data": "other", "teacher": "other"}), "kd report comparison"),
        (f"{KD}/run.json", of_others(inputs=None), "kd report comparison"),
        (f"{KD}/model.safetensors", Path.unlink, "kd"),
        (f"{KD}/evaluation.json", of_others(key="of other sources"), "evaluation report comparison"),
        (f"{KD}/evaluation.json", entry(top1=100.0), "evaluation latency report comparison"),
        (f"{KD}/metrics.json", entry(val_top1=91.0), "kd export"),
        (f"{KD}/metrics.json", entry(val_nll=0.4), "kd export"),
        ("export/big-small/scratch/model.onnx", text("damaged"), "export"),
        ("export/big-small/exported.json", text("[]"), "export latency report"),
        ("export/latency.json", of_others(networks="others"), "latency report"),
        ("export/latency.json", entry(measured="later"), "latency report"),
        ("export/big-small/scratch/model-int8.onnx", text("another precision"), "latency"),
        (f"{KD}/run.json", entry(wall_seconds=1.0), "kd evaluation report comparison"),
        (f"{KD}/evaluation.json", of_others(macs=2), "latency report comparison"),
        ("evaluation/metrics.json", text("damaged"), "comparison"),
        ("evaluation/made_from.json", Path.unlink, "comparison"),
        ("report/figures/accuracy.svg", text("damaged"), "report"),
    ],
)
def test_what_is_damaged_or_of_other_origin_does_not_fit(
    copy: Path, file: str, change: Callable[[Path], None], unfit: str
) -> None:
    change(copy / file)
    assert set(PRODUCTS) - fitting(plan_of()) == set(unfit.split())


@pytest.mark.parametrize(
    ("changes", "unfit"),
    [
        ({"tune": {"trials": 4}}, {"study"}),
        ({"report": {"confidence": 0.9}}, {"comparison", "report"}),
        ({"evaluate": {"batch_size": 7}}, {"evaluation"}),
        ({"compute": {"threads": 2}}, set()),
    ],
)
def test_results_of_other_settings_do_not_fit(copy: Path, changes: dict[str, Any], unfit: set[str]) -> None:
    assert set(PRODUCTS) - fitting(plan_of(**changes)) == unfit
