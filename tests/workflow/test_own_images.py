"""The user's own images through Snakemake: a change in the folder is noticed."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy

pytestmark = pytest.mark.workflow
SETTINGS = """
dataset: {source: image_folder, path: pictures, size: 16}
teachers: [{arch: resnet8, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {scratch: {}}
tracking: {enabled: false}
"""


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)


def take_pictures(folder: Path) -> None:
    """Ten of each class."""
    for name in ("cups", "plates"):
        for i in range(10):
            picture(folder / name / f"{i}.png", i + 100 * (name == "cups"))


def test_new_images_are_noticed_and_missing_ones_not_needed(tmp_path: Path, copy_project: "Copy") -> None:
    project = copy_project(tmp_path / "project")
    (project.path / "own.yaml").write_text(SETTINGS)
    take_pictures(project.path / "pictures")
    prepare = ("snakemake", "--cores", "1", "--configfile", "own.yaml")
    project.run(*prepare, "--", "data")
    assert "Nothing to be done" in project.run(*prepare, "--", "data")
    picture(project.path / "pictures" / "cups" / "new.png", 7)
    again = project.run(*prepare, "--", "data")
    assert "Reading and splitting the data set" in again and "Nothing to be done" not in again, again
    shutil.rmtree(project.path / "pictures")
    assert "Nothing to be done" in project.run(*prepare, "--", "data"), "what was read once is there"


def test_dvc_notices_new_images(tmp_path: Path, copy_project: "Copy") -> None:
    project = copy_project(tmp_path / "project")
    (project.path / "params.yaml").write_text(SETTINGS.replace("dataset: {", "dataset: {name: image_folder, "))
    take_pictures(project.path / "pictures")
    project.run("git", "init", "--quiet")
    project.run("dvc", "repro", "prepare")
    first = (project.path / "dvc.lock").read_text()
    assert "Nothing to be done" in project.run("dvc", "repro", "prepare")
    assert (project.path / "dvc.lock").read_text() == first
    picture(project.path / "pictures" / "cups" / "new.png", 7)
    again = project.run("dvc", "repro", "prepare")
    assert "Reading and splitting the data set" in again and "Nothing to be done" not in again, again
    assert (project.path / "dvc.lock").read_text() != first, "the stages after it follow"


def test_images_that_stay_in_their_files(tmp_path: Path, copy_project: "Copy") -> None:
    project = copy_project(tmp_path / "project")
    (project.path / "own.yaml").write_text(SETTINGS.replace("size: 16", "size: 16, storage: files"))
    take_pictures(project.path / "pictures")
    prepare = ("snakemake", "--cores", "1", "--configfile", "own.yaml", "--", "data")
    project.run(*prepare)
    assert (project.path / "results/image_folder/data/train.files.npy").exists()
    assert "Nothing to be done" in project.run(*prepare)
