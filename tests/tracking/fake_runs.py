"""The files that trainings and exports leave, written without training."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from iakd import files
from iakd.experiment.jobs import RESULTS
from iakd.experiment.run_dir import Row, Run, history_text


def history(epochs: int) -> list[Row]:
    """Return a history whose values depend on the epoch, validated in every second one."""
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": 0.1,
            "loss": 1.0 / epoch,
            "val_top1": 50.0 + epoch if epoch % 2 == 0 else None,
            "p_drawn_0": 0.5,
            "seconds": 2.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def metrics(epochs: int, **more: Any) -> dict[str, Any]:
    return {"val_top1": 50.0 + epochs, "val_nll": 0.25, "epochs": epochs, **more}


def student(seed: int = 0, key: str | None = None, dataset: str = "toy", pair: str = "T-S") -> Run:
    teacher, student = pair.split("-")
    return Run(
        path=f"{dataset}/students/{pair}/iakd-linear/seed{seed}",
        stage="distill",
        key=key or files.digest([dataset, "student", pair, seed]),
        params={"recipe": {"lr": 0.1, "milestones": [0.5, 0.75]}, "seed": seed, "note": "x" * 9000},
        seed=seed,
        about={"dataset": dataset, "teacher": teacher, "student": student, "method": "iakd-linear"},
        inputs={"data": "d" * 64},
    )


def teacher() -> Run:
    about = {"dataset": "toy", "teacher": "resnet20w8", "student": None, "method": "teacher"}
    return Run("toy/teachers/resnet20w8/seed0", "teach", "teacher-key", {}, 0, about, {"data": "d" * 64})


def study() -> Run:
    about = {"dataset": "toy", "teacher": "T", "student": "S", "method": "iakd-tuned"}
    return Run("toy/tune/T-S/iakd-tuned", "tune", "study-key", {"tune": {"seed": 0}}, 0, about, {})


def trial(number: int) -> Run:
    about = {"dataset": "toy", "teacher": "T", "student": "S", "method": "iakd-tuned", "trial": number}
    path = f"toy/tune/T-S/iakd-tuned/trials/{number:04}"
    return Run(path, "trial", f"trial-key-{number}", {"schedule": {"p0": 0.1 * number}}, 0, about, {})


def trial_seed(number: int, seed: int) -> Run:
    of_trial = trial(number)
    about = {**of_trial.about, "trial_seed": seed}
    key = f"trial-key-{number}-{seed}"
    return Run(f"{of_trial.path}/seed{seed}", "trial_seed", key, of_trial.params, 2**31 + seed, about, {})


def write_history(run: Run, epochs: int) -> None:
    """Write what `run.log` writes, without its pause between two writes."""
    files.write_text(run.live / "history.csv", history_text(history(epochs)))


def train(run: Run, epochs: int = 4, model: bytes | None = b"weights", **more: Any) -> Path:
    """Leave a finished run; return its results folder."""
    with run.open():
        write_history(run, epochs)
        return run.finish(history(epochs), metrics(epochs, **more), model)


def evaluate(run: Run, top1: float) -> None:
    """Leave an evaluation of a finished run."""
    value = {
        "top1": top1,
        "nll": 0.5,
        "n": 100,
        "seed": run.seed,
        "method": "m",
        "confusion": [[1, 0], [0, 1]],
    }
    files.write_json(RESULTS / run.path / "evaluation.json", value)


def kill(run: Run, epochs: int) -> None:
    """Leave a run as kill -9 does: announced, some epochs written, its lock free."""
    with run.open():
        write_history(run, epochs)


def manifest(dataset: str = "toy", sha256: str = "d" * 64) -> None:
    """Leave the manifest of prepared data."""
    value = {
        "sha256": sha256,
        "classes": ["dark", "bright"],
        "image": {"channels": 1, "height": 4, "width": 6},
        "splits": {name: {"n": n, "sha256": name * 12} for name, n in (("train", 60), ("val", 30), ("test", 10))},
    }
    files.write_json(RESULTS / dataset / "data" / "manifest.json", value)


def export(run: Run, weights: bytes = b"weights", val_top1: float = 90.0) -> Path:
    """Leave an export of a finished student: a network that says whether a grey image of 6×4 pixels is bright."""
    dataset, _, pair, method, _ = run.path.split("/")
    folder = RESULTS / dataset / "export" / pair / method
    contents = {
        "model.onnx": brightness().SerializeToString(),
        "model.safetensors": weights,
        "labels.txt": b"dark\nbright\n",
        "preprocessing.json": files.json_text({"size": [4, 6], "crop": 1.0, "channels": 1, "mode": "L"}).encode(),
        "README.md": b"# A model",
    }
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    record = {
        "key": files.digest([run.key, val_top1]),
        "dataset": dataset,
        "pair": pair,
        "method": method,
        "seed": run.seed,
        "model_sha256": files.sha256_bytes(weights),
        "data_sha256": "d" * 64,
        "val_top1": val_top1,
        "made_with": {"torch": "2.13.0+cpu", "onnx": onnx.__version__},
        "files": {name: files.sha256_bytes(content) for name, content in contents.items()},
    }
    files.write_json(folder / "export.json", record)
    return folder


def brightness() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.array([[-1.0], [1.0]], np.float32), "weights")
    bias = numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "bias")
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"], transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 6])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "brightness", [images], [logits], [weights, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
