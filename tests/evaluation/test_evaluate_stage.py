"""What `iakd evaluate` writes, refuses and leaves unchanged, on real data and untrained networks."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from iakd import files, models
from iakd.config import parse
from iakd.data.loader import DeviceLoader
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.evaluation.metrics import unpack
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, TeacherJob, plan_experiment
from iakd.models.network import initialise
from iakd.models.quantisation import each_bits, weight_bytes
from iakd.stages import prepare
from iakd.stages.evaluate import evaluate_run, run
from iakd.training.validation import predict

SPEEDS = ("latency_ms", "images_per_s")
CONTRACT = {
    *("top1", "top5", "nll", "ece", "n", "per_class_top1", "confusion", "correct", "parameters", "macs", *SPEEDS),
    *("balanced_accuracy", "macro_f1", "support", "majority_top1"),
    *("seed", "method", "teacher", "student", "dataset", "model_sha256", "data_sha256"),
}


def small_plan(**more: object) -> Experiment:
    raw = {
        "teachers": [{"arch": "resnet8", "width": 4}],
        "students": [{"arch": "resnet8", "width": 2}],
        "methods": {"scratch": {}, "iakd": {}},
        "distill": {"seeds": [0, 1]},
        "evaluate": {"latency_runs": 2},
        "compute": {"device": "cpu"},
    }
    return plan_experiment(parse({**raw, **more}, "test"))


def finish(experiment: Experiment, job: object, store: PreparedData) -> None:
    """Publish a network as its training would."""
    network = models.build(job.network if isinstance(job, TeacherJob) else job.student, 1, 10)
    initialise(network, torch.Generator().manual_seed(job.seed))
    inputs = {"data": store.sha256}
    attempt = run_dir.Run(job.path, job.stage, job.key, job.settings, job.seed, {"dataset": "digits"}, inputs)
    history: list[run_dir.Row] = [
        {"epoch": 1, "loss": 2.3, "seconds": 0.2, "val_top1": None},
        {"epoch": 2, "loss": 2.2, "seconds": 0.2, "val_top1": 10.0},
    ]
    with attempt.open():
        attempt.finish(history, {"val_top1": 10.0}, models.save_weights(network))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = small_plan()
        prepare.run(experiment)
        store = PreparedData.open(experiment.data.folder)
        for job in experiment.trained:
            finish(experiment, job, store)
    return folder


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> Experiment:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return small_plan()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_model(experiment):
    job = experiment.students[-1]
    path = evaluate_run(experiment, job.folder)
    found = read(path)
    assert path == job.folder / "evaluation.json"
    assert set(found) >= CONTRACT
    names = {name: found[name] for name in ("dataset", "teacher", "student", "method", "seed")}
    assert names == {
        "dataset": "digits", "teacher": "resnet8w4", "student": "resnet8w2", "method": "iakd", "seed": 1
    }  # fmt: skip
    store = PreparedData.open(experiment.data.folder)
    network = models.build(job.student, 1, 10)
    models.load_weights(network, (job.folder / run_dir.MODEL).read_bytes(), "")
    logits, labels = predict(
        network, DeviceLoader(store.images("test"), store.labels("test"), store.mean, store.std, "cpu"), 99
    )
    assert found["n"] == len(labels) == 847
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert found["support"] == np.bincount(labels).tolist()
    most = int(np.bincount(store.labels("train")).argmax())
    assert found["majority_top1"] == pytest.approx(100 * found["support"][most] / 847)
    assert (unpack(found["correct"], 847) == (logits.argmax(1) == labels).numpy()).all()
    assert found["data_sha256"] == store.sha256


def test_a_student_of_several_bit_widths_is_measured_at_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = small_plan(
        students=[{"arch": "resnet8", "width": 2, "bits": [2, 8]}], methods={"scratch": {}}, distill={"seeds": [0]}
    )
    prepare.run(experiment)
    store = PreparedData.open(experiment.data.folder)
    for job in experiment.trained:
        finish(experiment, job, store)
    folder, job = run(experiment), experiment.students[0]
    found = read(job.folder / "evaluation.json")
    network = models.build(job.student, 1, 10)
    models.load_weights(network, (job.folder / run_dir.MODEL).read_bytes(), "")
    test = DeviceLoader(store.images("test"), store.labels("test"), store.mean, store.std, "cpu")
    for bits in each_bits(network):
        logits, labels = predict(network, test, 256)
        top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
        assert found["bit_widths"][str(bits)]["top1"] == pytest.approx(top1)
        assert found["bit_widths"][str(bits)]["weight_bytes"] == weight_bytes(network)
    assert list(found["bit_widths"]) == ["8", "2"] and set(found) >= CONTRACT
    assert all(found[name] == found["bit_widths"]["8"][name] for name in ("top1", "nll", "ece", "weight_bytes"))
    for name, seed_column in (("runs.csv", "top1_2bit"), ("summary.csv", "top1_2bit_mean")):
        with (folder / name).open() as file:
            teacher, student = csv.DictReader(file)
        assert float(student[seed_column]) == pytest.approx(found["bit_widths"]["2"]["top1"], abs=1e-4)
        assert int(float(student["weight_bytes_2bit"])) == found["bit_widths"]["2"]["weight_bytes"]
        assert teacher[seed_column] == ""


def test_a_teacher_is_marked_as_one(experiment):
    found = read(evaluate_run(experiment, experiment.teachers[0].folder))
    assert (found["method"], found["teacher"], found["student"]) == ("teacher", "resnet8w4", None)


def test_bit_identical_except_for_the_speeds(experiment):
    path = evaluate_run(experiment, experiment.students[0].folder)
    first = read(path)
    path.unlink()
    second = read(evaluate_run(experiment, experiment.students[0].folder))
    assert {k: v for k, v in first.items() if k not in SPEEDS} == {k: v for k, v in second.items() if k not in SPEEDS}


def test_test_set_is_touched_once(experiment, monkeypatch):
    path = evaluate_run(experiment, experiment.students[0].folder)
    before = path.read_bytes()

    def touched(*_):
        raise AssertionError("the test images were read again")

    monkeypatch.setattr("iakd.evaluation.measure.predict", touched)
    assert evaluate_run(experiment, experiment.students[0].folder.resolve()) == path  # however the folder is spelled
    assert path.read_bytes() == before
    with pytest.raises(AssertionError, match="again"):
        evaluate_run(experiment, experiment.students[1].folder)


@pytest.mark.parametrize("damage", [lambda e: e.pop("correct"), lambda e: e.pop("macs"), lambda e: e.update(top1="98")])
def test_an_evaluation_that_is_incomplete_is_made_again(experiment, damage, caplog):
    path = evaluate_run(experiment, experiment.students[0].folder)
    whole = read(path)
    damaged = read(path)
    damage(damaged)
    files.write_record(path, damaged)
    assert evaluate_run(experiment, path.parent) == path
    again = read(path)
    assert {k: v for k, v in whole.items() if k not in SPEEDS} == {k: v for k, v in again.items() if k not in SPEEDS}
    assert "evaluation.json is damaged or of an earlier version" in caplog.text


def test_an_unreadable_evaluation_is_made_again(experiment):
    path = evaluate_run(experiment, experiment.students[0].folder)
    whole = read(path)
    path.write_bytes(path.read_bytes()[:99])
    evaluate_run(experiment, path.parent)
    assert read(path)["correct"] == whole["correct"]


def test_a_peer_is_evaluated_too(tmp_path, monkeypatch):
    """Here its weights are the teacher's, so it must be as good."""
    monkeypatch.chdir(tmp_path)
    experiment = small_plan(methods={"mutual": {}}, distill={"seeds": [0]})
    prepare.run(experiment)
    store = PreparedData.open(experiment.data.folder)
    for job in experiment.trained:
        finish(experiment, job, store)
    (student,) = experiment.students
    peer = (experiment.teachers[0].folder / run_dir.MODEL).read_bytes()
    record = read(student.folder / run_dir.RUN) | {"peer_sha256": files.sha256_bytes(peer)}
    files.write_record(student.folder / run_dir.RUN, record)
    with pytest.raises(UserError, match=r"peer\.safetensors is missing or damaged: delete .*--method mutual --seed 0`"):
        evaluate_run(experiment, student.folder)
    (student.folder / run_dir.PEER).write_bytes(peer)
    teacher, found = (read(evaluate_run(experiment, job.folder)) for job in experiment.trained)
    assert found["peer"] == {name: teacher[name] for name in ("top1", "top5", "nll", "ece")}
    assert found["top1"] != teacher["top1"]


def test_a_new_model_is_evaluated_again(experiment):
    job = experiment.students[0]
    old = read(evaluate_run(experiment, job.folder))
    (job.folder / run_dir.MODEL).write_bytes((experiment.students[1].folder / run_dir.MODEL).read_bytes())
    record = read(job.folder / run_dir.RUN)
    record["model_sha256"] = read(experiment.students[1].folder / run_dir.RUN)["model_sha256"]
    files.write_record(job.folder / run_dir.RUN, record)
    new = read(evaluate_run(experiment, job.folder))
    assert new["model_sha256"] != old["model_sha256"] and new["nll"] != old["nll"]


def test_damaged_weights(experiment):
    path = experiment.students[0].folder / run_dir.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        evaluate_run(experiment, path.parent)


def test_folder_of_another_experiment(experiment):
    with pytest.raises(
        UserError, match=r"not a model of these settings \(did you mean 'results/digits/students/.*seed1"
    ):
        evaluate_run(experiment, Path("results/digits/students/resnet8w4-resnet8w2/iakd/seed11"))


def test_model_of_other_settings(experiment):
    changed = small_plan(distill={"seeds": [0, 1], "recipe": {"lr": 0.01}})
    with pytest.raises(
        UserError, match=r"other settings: run `iakd distill --pair resnet8w4-resnet8w2 --method iakd --seed 0`"
    ):
        evaluate_run(changed, experiment.students[2].folder)


def test_model_of_other_data(experiment):
    path = experiment.students[0].folder / run_dir.RUN
    files.write_record(path, {**read(path), "data_sha256": "0" * 64})
    with pytest.raises(UserError, match="other data"):
        evaluate_run(experiment, path.parent)


def test_summary(experiment):
    folder = run(experiment)
    assert folder == Path("results/digits/evaluation")
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["teacher", "scratch", "scratch", "iakd", "iakd"]
    evaluations = [read(Path(row["folder"]) / "evaluation.json") for row in rows]
    assert [float(row["top1"]) for row in rows] == pytest.approx([e["top1"] for e in evaluations], abs=1e-4)
    metrics = read(folder / "metrics.json")
    assert "std" not in metrics["teachers"]["resnet8w4"]
    metrics = metrics["resnet8w4-resnet8w2"]
    mean = (evaluations[3]["top1"] + evaluations[4]["top1"]) / 2
    assert metrics["iakd"]["top1"] == pytest.approx(mean, abs=1e-4) and metrics["iakd"]["n"] == 2
    (epochs, _) = read(folder / "swapping.json")
    assert (epochs["method"], epochs["condition"], epochs["counterpart"]) == ("iakd", "equal_epochs", "scratch")
    scratch = (evaluations[1]["top1"] + evaluations[2]["top1"]) / 2
    assert epochs["difference"] == pytest.approx(mean - scratch, abs=1e-4) and epochs["n"] == 2
    curves = (folder / "curves.csv").read_text().splitlines()
    assert curves[0] == "teacher,student,method,seed,epoch,val_top1,loss"
    assert len(curves) == 1 + 4  # the epoch without a validation is left out
    before = {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}
    run(experiment)
    assert {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("position", "command"),
    [
        (0, "iakd teach --teacher resnet8w4 --seed 0"),
        (2, "iakd distill --pair resnet8w4-resnet8w2 --method scratch --seed 1"),
    ],
)
def test_missing_model_names_the_command_that_trains_it(experiment, position, command):
    missing = experiment.trained[position].folder
    (missing / run_dir.RUN).unlink()
    with pytest.raises(UserError, match=f"no finished model: run `{command}`"):
        run(experiment)
    evaluated = {path.parent for path in Path("results").rglob("evaluation.json")}
    assert evaluated == {job.folder for job in experiment.trained} - {missing}, "the others are not held up"
    assert not (experiment.evaluation / run_dir.METRICS).exists()
