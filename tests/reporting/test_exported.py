"""Accuracy, time and size of all networks, and the exported files: what the page shows of them."""

import json
from itertools import combinations
from pathlib import Path

import fake_experiment
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from iakd.errors import UserError
from iakd.experiment.jobs import Experiment
from iakd.reporting.exported import Candidate, Exports, Measured, pareto_front, read_exports
from iakd.reporting.figures import pareto, style
from iakd.reporting.results import read_comparison
from iakd.stages import report

METHODS: dict[str, dict] = {name: {} for name in ("scratch", "kd", "iakd", "iakd+kd", "dkd", "dist", "fitnet", "at")}
METHODS |= {name: {} for name in ("crd", "rkd", "pkt", "sp", "cc")}  # 13 in all


def candidate(name: str, top1: float, latency: float, size: int = 1) -> Candidate:
    batch = {"median_ms": latency, "p95_ms": 2 * latency, "images_per_s": 1000 / latency}
    about = {"network": name, "precision": "float32", "of": [name], "bytes": size, "memory_mib": 3.0}
    return Candidate(name, "iakd", top1, None, Measured.model_validate({**about, "batches": {"1": batch}}))


def test_the_front_has_what_no_other_one_beats() -> None:
    candidates = [
        candidate("dear", 95, 9),
        candidate("slow", 90, 4),
        candidate("good", 92, 3),
        candidate("cheap", 80, 1),
        candidate("bad", 79, 2),
    ]
    assert [found.label for found in pareto_front(candidates, "latency_ms")] == ["cheap", "good", "dear"]
    equals = [candidate("b", 90, 2), candidate("a", 90, 1), candidate("c", 91, 2)]
    assert [found.label for found in pareto_front(equals, "latency_ms")] == ["a", "c"]
    assert [found.label for found in pareto_front(equals, "bytes")] == ["c"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(experiment: Experiment) -> Experiment:
    """Write the results of an experiment in which each student is better the later its pair and method."""
    order = list(experiment.params.methods)
    pairs = list(dict.fromkeys(job.pair for job in experiment.students))
    fake_experiment.write(
        experiment, lambda job: 85 + 2 * pairs.index(job.pair) + 0.1 * order.index(job.label) + 0.1 * (job.seed == 1)
    )
    fake_experiment.measured(experiment)
    return experiment


def exports_of(experiment: Experiment) -> Exports:
    found = read_exports(experiment, read_comparison(experiment))
    assert found
    return found


def test_without_measurements_there_is_no_section(here: None) -> None:
    experiment = fake_experiment.plan({"kd": {}})
    fake_experiment.write(experiment, lambda _: 90.0)
    assert read_exports(experiment, read_comparison(experiment)) is None


def test_each_method_of_each_pair_in_each_precision_is_a_candidate(here: None) -> None:
    """Times and sizes are those of the network; accuracies are means over the seeds."""
    experiment = fake_experiment.plan(
        {"kd": {}, "iakd": {}},
        pairs=[("resnet20", "resnet8"), ("resnet56", "resnet8"), ("resnet56", "small")],
        students=[{"arch": "resnet8"}, {"arch": "resnet8x4", "name": "small", "bits": [2, 8]}],
    )
    found = exports_of(written(experiment))
    shown = {one.label: (round(one.top1, 2), round(one.latency_ms, 4), one.bytes) for one in found.candidates}
    assert shown == {
        "resnet20": (97.2, 0.2, 640_000),
        "resnet56": (97.2, 0.56, 1_792_000),
        "resnet20 → resnet8, kd": (85.03, 0.08, 256_000),
        "resnet20 → resnet8, kd, int8": (84.53, 0.112, 64_000),
        "resnet20 → resnet8, iakd": (85.13, 0.08, 256_000),
        "resnet56 → resnet8, kd": (87.03, 0.08, 256_000),
        "resnet56 → resnet8, kd, int8": (86.53, 0.112, 64_000),
        "resnet56 → resnet8, iakd": (87.13, 0.08, 256_000),
        "small, kd, 8 bits": (89.03, 0.112, 64_000),
        "small, kd, 2 bits": (83.03, 0.112, 16_000),
        "small, iakd, 8 bits": (89.13, 0.112, 64_000),
        "small, iakd, 2 bits": (83.13, 0.112, 16_000),
    }
    kinds = {one.label: one.kind for one in found.candidates}
    assert [kinds[label] for label in ("resnet20", "small, kd, 2 bits", "small, iakd, 2 bits")] == [
        *("teacher", "other", "iakd")
    ]
    assert found.conditions == "ONNX Runtime 1.20.0 with 1 thread on Abacus (2 cores), Linux 6 x86_64"


def test_exported_files_and_teachers_have_rows(here: None) -> None:
    experiment = written(fake_experiment.plan({"kd": {}}))
    found = exports_of(experiment)
    assert found.folders == [experiment.exports[0].folder / "kd"]
    rows = [(row["label"], row["file"], row["top1"], row["size"], row["times"][1]) for row in found.rows]
    assert rows == [
        ("resnet8, kd", "model.onnx", "85.0", "0.256", "0.640 (1.28)"),
        ("resnet8, kd, int8", "model-int8.onnx", "84.5", "0.0640", "0.896 (1.79)"),
        ("resnet20", "", "97.2", "0.640", "1.60 (3.20)"),
    ]
    assert (found.rows[0]["speed"], found.rows[0]["memory"]) == ("12\u202f500", "3")


def test_a_network_that_cannot_be_measured_is_named(here: None) -> None:
    experiment = written(fake_experiment.plan({"kd": {}}))
    path = experiment.export_folder / "latency.json"
    latency = json.loads(path.read_text())
    teachers = [model for model in latency["models"] if model["network"] == "resnet20"]
    latency["models"] = [model for model in latency["models"] if model["network"] != "resnet20"]
    latency["left_out"] = [{"network": "resnet20", "of": ["resnet20"], "reason": "torch cannot"}]
    path.write_text(json.dumps(latency))
    found = exports_of(experiment)
    assert (found.left_out, len(teachers)) == (["resnet20: torch cannot"], 1)
    assert [one.label for one in found.candidates] == ["resnet8, kd", "resnet8, kd, int8"]
    report.run(experiment)
    assert "Not measured: resnet20: torch cannot." in (experiment.report / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, r"latency\.json has no times of resnet20: run `iakd latency`"),
        ({"threads": "one"}, r"latency\.json is damaged \(threads: .*delete it, then run `iakd latency`"),
    ],
)
def test_outdated_and_damaged_measurements(here: None, change: dict, message: str) -> None:
    experiment = written(fake_experiment.plan({"kd": {}}))
    path = experiment.export_folder / "latency.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        read_exports(experiment, read_comparison(experiment))


@pytest.mark.parametrize("name", ["exported.json", "export.json"])
@pytest.mark.parametrize("wrong", [None, [], {}, "x", 7, True, [None], [{"method": "no", "seed": 0, "folder": "kd"}]])
def test_damaged_records_of_exports_are_one_line(here: None, name: str, wrong: object) -> None:
    experiment = written(fake_experiment.plan({"kd": {}}))
    (path,) = experiment.export_folder.glob(f"**/{name}")
    record = json.loads(path.read_text())
    names = ["models"] if name == "exported.json" else ["files", "evaluation", "int8"]
    for damaged in (wrong, *({**record, one: wrong} for one in names)):
        path.write_text(json.dumps(damaged))
        try:
            read_exports(experiment, read_comparison(experiment))
        except UserError as error:
            assert str(path) in str(error) and "run `iakd export" in str(error)
        else:
            harmless = {"models": ([],), "files": ({},)}
            assert any(damaged == {**record, one: value} for one, values in harmless.items() for value in values)


def test_labels_of_many_methods_and_pairs_cover_neither_each_other_nor_a_dot(here: None) -> None:
    """13 methods, four pairs, one of them with two precisions, and three with int8; one method failed to train."""
    pairs = [("resnet110", "resnet20"), ("resnet56", "resnet20"), ("resnet56", "resnet8"), ("resnet110", "few")]
    experiment = fake_experiment.plan(
        METHODS,
        seeds=(0, 1),
        pairs=pairs,
        students=[{"arch": "resnet20"}, {"arch": "resnet8"}, {"arch": "resnet14", "name": "few", "bits": [4, 8]}],
    )

    def score(job: fake_experiment.StudentJob) -> float:
        failed = (job.label, job.student.name) == ("at", "resnet8")
        level = {"resnet20": 93.0, "resnet8": 89.0, "few": 91.0}[job.student.name]
        return 41.0 if failed else level + fake_experiment.seed_of(job.label) % 40 / 10

    fake_experiment.write(experiment, score)
    fake_experiment.measured(experiment)
    exports = exports_of(experiment)
    assert len(exports.candidates) == 2 + 13 * 5 + 3
    with style.drawing():
        figure = pareto.draw_pareto(exports)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    for axes, cost in zip(figure.axes, ("latency_ms", "bytes", "training_seconds", "macs"), strict=True):
        boxes = {text.get_text(): Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts}
        front = {one.label for one in pareto_front(exports.candidates, cost)}
        assert {*front, "resnet56", "resnet110"} <= set(boxes), "what nothing beats, and the teachers"
        assert not [(a, b) for (a, one), (b, other) in combinations(boxes.items(), 2) if one.overlaps(other)]
        dots = axes.transData.transform([(getattr(one, cost), one.top1) for one in exports.candidates if one.top1 > 80])
        if cost == "latency_ms":
            assert not [(text, dot) for text, box in boxes.items() for dot in dots if box.contains(*dot)]
        frame = axes.get_window_extent()
        assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes.values())
