"""Trainings on images that stay in their files."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import photos

from iakd import files
from iakd.config import load
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.stages import distill, prepare, teach
from iakd.training.trainer import Trainer

PRESET = Path(__file__).parents[2] / "experiments/imagenet.yaml"
SMALL = ["compute.device=cpu", "teach.recipe.epochs=2", "teach.recipe.batch_size=6", "teach.recipe.precision=fp32"]


def experiment(name: str, *changes: str) -> Experiment:
    chosen = [f"dataset.name={name}", "dataset.path=images", "dataset.val=6", *SMALL, *changes]
    return plan_experiment(load(PRESET, chosen))


def model_of(experiment: Experiment) -> str:
    """Prepare and train the teacher; the hash of its weights."""
    prepare.run(experiment)
    folder = teach.run(experiment, experiment.teachers[0])
    return str(files.read_json(folder / "run.json", "")["model_sha256"])


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of three classes, 24 for training and 6 for the test, as ImageNet has them."""
    monkeypatch.chdir(tmp_path)
    for part, per in (("train", 8), ("val", 2)):
        photos.mixed(tmp_path / "images" / part, per)
        for folder, wnid in (("ant", "n02219486"), ("bee", "n02206856"), ("cat", "n02121808")):
            (tmp_path / "images" / part / folder).rename(tmp_path / "images" / part / wnid)


def test_interrupted_equals_uninterrupted_whatever_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = "[{arch: resnet8, width: 4}]"
    small = ["dataset.size=16", "dataset.storage=files", f"teachers={network}", f"students={network}"]
    whole = model_of(experiment("whole", *small, "compute.workers=0"))
    again = experiment("again", *small, "compute.workers=2")
    step = Trainer.train_step

    def interrupted(self: Trainer, batch: Any) -> None:
        step(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        for _ in range(4):  # of six steps; each time in the same process, whose lock no worker may keep
            with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
                model_of(again)
    assert model_of(again) == whole
    assert model_of(experiment("other", *small, "compute.workers=1", "teach.seeds=[1]")) != whole


def test_the_preset_runs(caplog: pytest.LogCaptureFixture) -> None:
    short = experiment(
        "imagenet", "dataset.size=32", "dataset.storage=files", "teach.recipe.epochs=1", "compute.workers=1"
    )
    assert short.teachers[0].recipe.augment.crop == "resized"
    assert len(model_of(short)) == 64


def test_side_by_side_each_training_has_its_own_pass_over_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted once, two seeds end as they do one by one."""
    network = "[{arch: resnet8, width: 4}]"
    small = ["dataset.size=16", "dataset.storage=files", f"teachers={network}", f"students={network}"]
    small += ["methods={scratch: {}}", "distill.seeds=[0, 1]", "compute.workers=1"]
    small += [f"distill.recipe.{name}" for name in ("epochs=3", "batch_size=6", "precision=fp32")]
    together, alone = experiment("together", *small), experiment("alone", *small)
    prepare.run(together), prepare.run(alone)
    step = Trainer.train_step

    def interrupted(self: Trainer, batch: Any) -> None:
        step(self, batch)
        if self.run.seed == 1 and self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            distill.run(together, *together.students)
    folders = distill.run(together, *together.students)
    singles = [folder for job in alone.students for folder in distill.run(alone, job)]
    hashes = [
        [files.read_json(folder / "run.json", "")["model_sha256"] for folder in some] for some in (folders, singles)
    ]
    assert hashes[0] == hashes[1] and hashes[0][0] != hashes[0][1]
