"""The prepare stage: what it writes, what it keeps, and what it prepares again."""

import json
import logging
import os
import shutil
from pathlib import Path

import kinds
import numpy as np
import pytest
import rgb

from iakd import files
from iakd.config import SOURCES, Dataset, Params, Teacher
from iakd.data.source_data import SourceData
from iakd.data.store import PreparedData
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.orchestration.snakemake_hooks import set_up
from iakd.stages import prepare

FOLDER = Path("results/rgb/data")
PAST = 10**18  # nanoseconds


@pytest.fixture(autouse=True)
def _project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SOURCES, "rgb", rgb.SPEC)


def age() -> None:
    """Put the modification times into the past, so that a rewritten file shows."""
    for path in FOLDER.iterdir():
        os.utime(path, ns=(PAST, PAST))


def rewritten() -> set[str]:
    return {path.name for path in FOLDER.iterdir() if path.stat().st_mtime_ns != PAST}


def test_it_returns_the_manifest_of_usable_data(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert prepare.run(rgb.experiment()) == FOLDER / "manifest.json"
    store = PreparedData.open(FOLDER, settings=rgb.experiment().data.settings)
    assert store.images("train").shape == (45, *rgb.SHAPE)
    assert "45 train, 15 val, 12 test images of 3×6×4, 3 classes" in caplog.text


def test_data_that_are_up_to_date_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.run(rgb.experiment())
    age()

    def refuse(settings: Dataset) -> SourceData:
        raise AssertionError("the source was read again")

    monkeypatch.setattr(rgb, "read", refuse)
    prepare.run(rgb.experiment())
    assert rewritten() == set()


@pytest.mark.parametrize("change", [{"val": 12}, {"split_seed": 1}])
def test_other_settings_are_prepared_again(change: dict[str, int]) -> None:
    prepare.run(rgb.experiment())
    before = PreparedData.open(FOLDER).sha256
    prepare.run(rgb.experiment(**change))
    assert PreparedData.open(FOLDER, settings=rgb.experiment(**change).data.settings).sha256 != before


def test_another_version_of_the_reader_is_a_reason_to_prepare_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare.run(rgb.experiment())
    age()
    monkeypatch.setattr("iakd.experiment.jobs.source_sha", lambda *modules: "changed")
    prepare.run(rgb.experiment())
    assert len(rewritten()) == 7


@pytest.mark.parametrize("name", ["manifest.json", "train.images.npy", "test.labels.npy"])
def test_damaged_data_are_prepared_again_with_the_same_bytes(name: str) -> None:
    prepare.run(rgb.experiment())
    path = FOLDER / name
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    prepare.run(rgb.experiment())
    assert path.read_bytes() == content
    path.unlink()
    prepare.run(rgb.experiment())
    assert path.read_bytes() == content


def test_problems_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    raw = rgb.raw()
    raw.problems.append("a.txt is not an image")
    monkeypatch.setattr(rgb, "read", lambda settings: raw)
    prepare.run(rgb.experiment())
    assert [(r.levelname, r.message) for r in caplog.records if r.levelno > logging.INFO] == [
        ("WARNING", f"{FOLDER}: a.txt is not an image")
    ]


def test_two_at_once_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "SECONDS_FOR_ORPHANS", 0.1)
    experiment = rgb.experiment()
    with (
        files.exclusive(experiment.data.state / "lock", "busy"),
        pytest.raises(UserError, match="another process is preparing it"),
    ):
        prepare.run(experiment)
    assert not FOLDER.exists()


def test_settings_that_cannot_be_met_leave_earlier_data_untouched() -> None:
    prepare.run(rgb.experiment())
    age()
    with pytest.raises(UserError, match=r"^dataset\.val"):
        prepare.run(rgb.experiment(val=1000))
    assert rewritten() == set()
    PreparedData.open(FOLDER)


def test_files_that_changed_are_read_again_and_files_that_are_gone_need_not_be(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("ant", "bee"):
        kinds.unpacked(images, {f"{name}/{n}.png": kinds.png(kinds.pixels(1, n)[0]) for n in range(10)})
    network = Teacher(arch="resnet8")
    dataset = Dataset.model_validate({"source": "image_folder", "name": "rgb", "path": str(images), "size": 8})
    experiment = plan_experiment(Params(dataset=dataset, teachers=[network], students=[network], methods={"kd": {}}))
    prepare.run(experiment)
    first = PreparedData.open(FOLDER).sha256
    age()
    prepare.run(experiment)
    assert rewritten() == set()
    kinds.unpacked(images, {"ant/more.png": kinds.png(kinds.pixels(1, 99)[0])})
    prepare.run(experiment)
    assert rewritten() and PreparedData.open(FOLDER).sha256 != first
    age()
    shutil.rmtree(images)
    prepare.run(experiment)
    assert rewritten() == set()


def trained(experiment: Experiment) -> None:
    """Leave the records of all trainings, as if they had been made with the data that are prepared now."""
    for job in experiment.trained:
        record = {"params": job.settings, "data_sha256": PreparedData.open(experiment.data.folder).sha256}
        files.write_json(job.folder / "run.json", record)


def pictures(folder: Path, seed: int = 0) -> Path:
    for position, name in enumerate(("ant", "bee")):
        pixels = kinds.pixels(10, seed + position)
        kinds.unpacked(folder, {f"{name}/{n}.png": kinds.png(image) for n, image in enumerate(pixels)})
    return folder


def of_folder(path: Path, **changes: object) -> Experiment:
    network = Teacher(arch="resnet8")
    raw = {"source": "image_folder", "name": "rgb", "path": str(path), "size": 8, **changes}
    dataset = Dataset.model_validate(raw)
    return plan_experiment(Params(dataset=dataset, teachers=[network], students=[network], methods={"kd": {}}))


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}


def test_another_data_set_does_not_take_the_name_of_one_with_results(tmp_path: Path) -> None:
    prepare.run(rgb.experiment())
    prepare.run(rgb.experiment(source="digits"))  # without results nothing is lost
    prepare.run(rgb.experiment())
    trained(rgb.experiment())
    before = contents()
    said = (
        r"^results/rgb holds 4 trainings on other data \(rgb\): give this data set another dataset\.name, or delete res"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(rgb.experiment(source="digits"))
    settings = {"dataset": {"name": "rgb"}, "teachers": [{"arch": "resnet8"}], "students": [{"arch": "resnet8"}]}
    files.write_json(Path("settings.yaml"), {**settings, "methods": {"scratch": {}}})
    with pytest.raises(UserError, match=said):  # before Snakemake deletes the arrays
        set_up([Path("settings.yaml")], {}, main=True)
    assert contents() == before
    prepare.run(rgb.experiment(source="digits", name="other"))


def test_another_folder_of_images_is_another_data_set_and_a_moved_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flowers, cars = pictures(tmp_path / "flowers"), pictures(tmp_path / "cars", 50)
    prepare.run(of_folder(flowers))
    trained(of_folder(flowers))
    before = contents()
    with pytest.raises(UserError, match=r"holds 4 trainings on other data \(image_folder at .*flowers\): give this"):
        prepare.run(of_folder(cars))
    assert contents() == before
    (tmp_path / "link").symlink_to(flowers)
    for path in (tmp_path / "link", Path("flowers")):
        prepare.run(of_folder(path))  # the same folder by other names
    flowers.rename(tmp_path / "moved")
    caplog.clear()
    prepare.run(of_folder(tmp_path / "moved"))
    assert f"path {flowers} → {tmp_path}/moved); stale" in caplog.text


def test_trainings_on_other_data_are_named_when_data_are_prepared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pictures(tmp_path / "images")
    prepare.run(of_folder(folder))
    trained(of_folder(folder))
    prepare.run(of_folder(folder))
    assert "stale" not in caplog.text
    prepare.run(of_folder(folder, val=3, split_seed=4))
    said = "4 trainings in results/rgb used other data (val 0.1 → 3, split_seed 0 → 4); stale until trained again"
    assert said in caplog.text
    caplog.clear()
    kinds.unpacked(folder, {"ant/0.png": kinds.png(kinds.pixels(1, 77)[0])})
    prepare.run(of_folder(folder))
    assert "4 trainings in results/rgb used other data (the images have changed); stale" in caplog.text
    caplog.clear()
    prepare.run(of_folder(folder))  # up to date, and still stale
    assert "(the images have changed); stale" in caplog.text
    for path in sorted(Path("results").rglob("run.json")):  # records that tell nothing are passed over
        path.write_text("{" if "teachers" in path.parts else json.dumps({"params": {"data": []}}))
    caplog.clear()
    prepare.run(of_folder(folder))
    assert "stale" not in caplog.text


def test_images_of_the_same_size_in_the_same_place_are_read_again(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    prepare.run(of_folder(folder))
    first = PreparedData.open(FOLDER).sha256
    content = (folder / "ant/0.png").read_bytes()
    os.link(folder / "ant/0.png", tmp_path / "elsewhere.png")
    image = kinds.pixels(1, 1)[0]
    same_length = next(
        found for level in range(256) if len(found := kinds.png(np.where(image == 0, level, image))) == len(content)
    )
    (tmp_path / "elsewhere.png").write_bytes(same_length)
    prepare.run(of_folder(folder))
    assert PreparedData.open(FOLDER).sha256 != first
