"""Every file in experiments/, run through the stages on a few made-up images in its publisher's layout."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iakd.config import load
from iakd.experiment.jobs import Experiment, plan_experiment

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import kinds

FOLDER = Path(__file__).parents[2] / "experiments"
STEPS = 2  # of each training
METHODS = 8  # of a preset at most


def cifar10(folder: Path) -> None:
    kinds.unpacked(folder, kinds.cifar10_files(kinds.cifar10(), "binary"))


def cifar100(folder: Path) -> None:
    kinds.unpacked(folder, kinds.cifar100_files(kinds.cifar100(), "python"))


def tiny_imagenet(folder: Path) -> None:
    """Its real layout with three of the classes."""
    names = ["n01443537", "n02124075", "n07749582"]
    lines = []
    for position, name in enumerate(names):
        for i in range(8):
            picture(folder / "train" / name / "images" / f"{name}_{i}.JPEG", 64, position)
        for i in range(2):
            picture(folder / "val" / "images" / f"val_{2 * position + i}.JPEG", 64, position)
            lines.append(f"val_{2 * position + i}.JPEG\t{name}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    (folder / "words.txt").write_text("".join(f"{name}\tthing {name}\n" for name in names))


def own_images(folder: Path) -> None:
    for position, name in enumerate(("cups", "plates")):
        for i in range(20):
            picture(folder / name / f"{i}.jpg", 40 + i, position)


def imagenet(folder: Path) -> None:
    for position, name in enumerate(("n01440764", "n01443537")):
        for part, n in (("train", 6), ("val", 1)):
            for i in range(n):
                picture(folder / part / name / f"{name}_{i}.JPEG", 230 + i, position)


def picture(path: Path, side: int, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(side).integers(60 * shade, 60 * shade + 100, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


DATA: dict[str, Callable[[Path], None] | None] = {
    "digits": None,
    "digits_long": None,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny_imagenet": tiny_imagenet,
    "own_images": own_images,
    "own_images_quick": own_images,
    "imagenet": imagenet,
    "cifar100_table": cifar100,
    "cifar100_cross": cifar100,
    "cifar_mini": cifar100,
    "digits_methods": None,
}


def test_every_preset_is_run_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(DATA)


def briefly(preset: str, folder: Path) -> Experiment:
    """The preset's experiment with very short trainings; tuned settings are those that their study starts with."""
    make_data = DATA[preset]
    path = FOLDER / f"{preset}.yaml"
    short = "{epochs: 1, batch_size: 8, precision: fp32}"
    changes = [
        f"teach.recipe={short}",
        f"distill.recipe={short}",
        "distill.seeds=[0]",
        "evaluate={batch_size: 8, latency_runs: 1}",
    ]
    if make_data:
        make_data(folder / "data")
        changes += [f"dataset.path={folder / 'data'}"]
    changes += [f"distill.transfer={8 * STEPS}", "dataset.val=0.25"]
    params = load(path)
    for label, method in params.methods.items():
        changes += [f"methods.{label}.tune={{}}"] * bool(method.tune) + [f"methods.{label}.recipe={{}}"]
        changes += [f"methods.{label}.iakd.schedule.kind=linear"] * method.tunes_schedule
    if preset == "imagenet":
        changes += ["distill.transfer=8", "evaluate.batch_size=2"]
    return plan_experiment(load(path, changes))


@pytest.mark.parametrize("preset", DATA)
def test_through_all_stages(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = briefly(preset, tmp_path)
    from iakd.stages import distill, evaluate, prepare, report, teach

    prepare.run(experiment)
    pair = experiment.students[0].path.split("/")[2]  # one pair stands for all
    jobs = [job for job in experiment.students if job.path.split("/")[2] == pair]
    jobs = jobs[:: math.ceil(len(jobs) / METHODS)]  # tests/methods/ has them all
    teach.run(experiment, jobs[0].teacher)
    for job in jobs:
        distill.run(experiment, job)
    if len(jobs) == len(experiment.students):
        evaluate.run(experiment)
        assert report.run(experiment).stat().st_size > 10_000
    else:
        for job in (jobs[0].teacher, *jobs):
            evaluate.evaluate_run(experiment, job.folder)
