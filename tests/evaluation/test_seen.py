"""What is said of the test images that an imported teacher may have learned."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iakd import models
from iakd.config import Teacher, parse
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.evaluation.seen import count_seen, note
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.stages import prepare


def plan(storage: str, **teacher: Any) -> Experiment:
    raw = {
        "dataset": {"name": "own", "source": "image_folder", "path": "photos", "size": 8, "storage": storage},
        "teachers": [{"arch": "resnet8", "width": 4, "checkpoint": "t.pth", "normalisation": "half", **teacher}],
        "students": [{"arch": "resnet8", "width": 2}],
        "methods": {"kd": {}},
        "compute": {"device": "cpu"},
        "tracking": {"enabled": False},
    }
    return plan_experiment(parse(raw, "test"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        for label in ("ant", "bee"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / label / f"{i}.png")
    torch.save(models.build(plan("array").teachers[0].network, 3, 2).state_dict(), "t.pth")
    return tmp_path


@pytest.mark.parametrize("storage", ["array", "files"])
def test_images_are_recognised_by_their_content(storage: str, photos: Path) -> None:
    """Copies with other names, in another folder or in a list."""
    experiment = plan(storage)
    prepare.run(experiment)
    store = PreparedData.open(experiment.data.folder)
    chosen = [photos / "photos/test/ant/1.png", photos / "photos/test/bee/3.png"]
    (photos / "old").mkdir()
    for i, path in enumerate([*chosen, *(photos / "photos/train/ant").iterdir()]):
        shutil.copyfile(path, photos / "old" / f"copy{i}.png")
    found = count_seen(Teacher(arch="resnet8", checkpoint="t.pth", trained_on="old"), store)
    assert found is not None and (found["files"], found["test"]) == (22, 2) and found["val"] >= 0
    (photos / "old" / "list.txt").write_text("copy0.png\n\n" + "\n".join(map(str, chosen)) + "\n")
    found = count_seen(Teacher(arch="resnet8", checkpoint="t.pth", trained_on="old/list.txt"), store)
    assert found == {"files": 3, "val": 0, "test": 2}
    assert count_seen(Teacher(arch="resnet8", checkpoint="t.pth", trained_on="train"), store) == {"split": "train"}
    assert count_seen(Teacher(arch="resnet8", checkpoint="t.pth"), store) is None


def test_mistakes(photos: Path) -> None:
    experiment = plan("array")
    prepare.run(experiment)
    store = PreparedData.open(experiment.data.folder)
    (photos / "list.txt").write_text("gone.png\nphotos/test/ant/1.png\n")
    (photos / "none").mkdir()
    for trained_on, words in (
        ("list.txt", r"1 of its 2 files do not exist, such as gone\.png"),
        ("absent.txt", "is neither a folder nor a list of files"),
        ("none", "names no images"),
    ):
        with pytest.raises(UserError, match=f"teacher mine: trained_on {trained_on}.*{words}"):
            count_seen(Teacher(name="mine", arch="resnet8", checkpoint="t.pth", trained_on=trained_on), store)
    with pytest.raises(UserError, match="trained_on is a setting of imported teachers"):
        plan("array", checkpoint=None, normalisation=None, trained_on="train")


def test_it_changes_the_teacher_but_none_of_its_students(photos: Path) -> None:
    one, other = plan("array"), plan("array", trained_on="train")
    assert one.teachers[0].key != other.teachers[0].key
    assert [job.key for job in one.students] == [job.key for job in other.students]


def test_sentences() -> None:
    assert note("big", {"origin": None}) == ""
    assert "is not known here" in note("big", {"origin": "t.pth"})
    assert "according to the settings" in note("big", {"origin": "t.pth", "trained_on": {"split": "train"}})
    listed = {"files": 5000, "val": 3, "test": 0}
    assert note("big", {"origin": "t.pth", "trained_on": listed}) == (
        "None of them is among the 5,000 images that the imported teacher big was trained with."
    )
    told = note("big", {"origin": "t.pth", "trained_on": {**listed, "test": 120}})
    assert told.startswith("120 of them are among the 5,000 images") and "accuracy is too high" in told
