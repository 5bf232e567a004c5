"""The files that trainings leave, written without training."""

from pathlib import Path
from typing import Any

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


def student(seed: int = 0, key: str | None = None, dataset: str = "toy") -> Run:
    return Run(
        path=f"{dataset}/students/T-S/iakd-linear/seed{seed}",
        stage="distill",
        key=key or files.digest([dataset, "student", seed]),
        params={"recipe": {"lr": 0.1, "milestones": [0.5, 0.75]}, "seed": seed, "note": "x" * 9000},
        seed=seed,
        about={"dataset": dataset, "teacher": "T", "student": "S", "method": "iakd-linear"},
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
