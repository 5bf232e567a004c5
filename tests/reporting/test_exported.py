"""The section on exported models: which models nothing beats, and what the page shows of files and times."""

import json
from pathlib import Path

import pytest

from iakd.config import parse
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.reporting.exported import ExportedModel, pareto_front, read_exports
from iakd.reporting.figures import pareto, style


def model(name: str, top1: float, latency: float, size: int = 1) -> ExportedModel:
    batch = {"median_ms": latency, "p95_ms": 2 * latency, "images_per_s": 1000 / latency, "runs": 10}
    return ExportedModel("big-small", name, "student", top1, size, 3.0, {"1": batch})


def test_the_front_has_the_models_that_no_other_one_beats() -> None:
    models = [
        model("dear", 95, 9),
        model("slow", 90, 4),
        model("good", 92, 3),
        model("cheap", 80, 1),
        model("bad", 79, 2),
    ]
    assert [m.label for m in pareto_front(models, "latency_ms")] == ["cheap", "good", "dear"]
    equals = [model("b", 90, 2), model("a", 90, 1), model("c", 91, 2)]
    assert [m.label for m in pareto_front(equals, "latency_ms")] == ["a", "c"]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(tmp_path)
    networks = {"teachers": [{"arch": "resnet20", "name": "big"}], "students": [{"arch": "resnet8", "name": "small"}]}
    return plan_experiment(parse({**networks, "methods": {"kd": {}}}, "test"))


def test_without_measured_exports_there_is_no_section(experiment: Experiment) -> None:
    assert read_exports(experiment) is None


def test_files_times_and_conditions(experiment: Experiment) -> None:
    folder = experiment.exports[0].folder
    folder.mkdir(parents=True)
    (folder / "exported.json").write_text(json.dumps({"models": [{"folder": "kd"}]}))
    batches = {
        size: {"median_ms": ms, "p95_ms": 2 * ms, "images_per_s": 1000 * int(size) / ms, "runs": 10}
        for size, ms in (("1", 0.5), ("8", 2.0), ("32", 16.0))
    }
    shared = {"method": "kd", "memory_mib": 3.4, "batches": batches}
    models = [
        {"role": "student", "file": "kd/model.onnx", "top1": 91.0, "bytes": 2048, **shared},
        {"role": "student", "file": "kd/model-int8.onnx", "top1": 90.5, "bytes": 1024, **shared},
        {"role": "student", "file": "kd/model-2bit.onnx", "top1": 80.0, "bytes": 512, **shared},
        {"role": "teacher", "file": None, "top1": 95.0, "bytes": 4096, **shared},
    ]
    (folder / "latency.json").write_text(json.dumps({"threads": 1, "cpu": "Abacus", "models": models}))
    found = read_exports(experiment)
    assert found
    assert found.folders == [folder / "kd"] and found.conditions == "Abacus, 1 thread, nothing else running"
    assert [row["label"] for row in found.rows] == ["small, kd", "small, kd int8", "small, kd 2 bits", "big"]
    first = found.rows[0]
    assert (first["top1"], first["size"], first["memory"], first["speed"]) == ("91.00", "2", "3", "4,000")
    assert first["times"] == ["0.5 (1)", "2 (4)", "16 (32)"]
    with style.drawing():
        figure = pareto.draw_pareto(found)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["small, kd", "small, kd int8", "small, kd 2 bits", "big"]
