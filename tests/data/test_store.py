"""The store: what `write_store` puts on disk, and what `PreparedData.open` accepts."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rgb

from iakd import files
from iakd.config import SOURCES, Dataset
from iakd.data import writer
from iakd.data.source_data import SourceData
from iakd.data.sources import digits
from iakd.data.splits import Split
from iakd.data.statistics import content_hashes, dominant_class, duplicates, similar_names
from iakd.data.store import SPLITS, PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError

ARRAYS = [f"{split}.{kind}.npy" for split in SPLITS for kind in ("images", "labels")]


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "rgb", rgb.SPEC)


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "rgb", rgb.SPEC)
        return write_store(tmp_path_factory.mktemp("prepared"), rgb.raw(), rgb.settings()).parent


@pytest.fixture
def folder(tmp_path: Path, _prepared: Path) -> Path:
    return Path(shutil.copytree(_prepared, tmp_path, dirs_exist_ok=True))


def rewrite(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_digits_fall_into_disjoint_parts_that_cover_all(tmp_path: Path) -> None:
    raw = digits.read(Dataset())
    write_store(tmp_path, raw, Dataset())
    opened = PreparedData.open(tmp_path)
    splits = opened.manifest["splits"]
    assert {name: splits[name]["n"] for name in SPLITS} == {"train": 650, "val": 300, "test": 847}
    assert sorted(i for name in SPLITS for i in splits[name]["indices"]) == list(range(1797))
    whole = np.bincount(raw.train_labels)
    for name in SPLITS:
        indices = splits[name]["indices"]
        assert (opened.images(name) == raw.train_images[indices]).all()
        assert (opened.labels(name) == raw.train_labels[indices]).all()
        assert splits[name]["per_class"] == np.bincount(opened.labels(name)).tolist()
        assert np.abs(splits[name]["per_class"] - whole * len(indices) / 1797).max() < 2  # val: of what test left
    assert np.abs(splits["test"]["per_class"] - whole * 847 / 1797).max() < 1
    write_store(tmp_path, raw, Dataset(split_seed=1))
    for name in SPLITS:
        assert PreparedData.open(tmp_path).manifest["splits"][name]["indices"] != splits[name]["indices"]
    assert opened.manifest["problems"] == []


def test_a_sources_own_test_set_is_taken_whole(folder: Path) -> None:
    opened, raw = PreparedData.open(folder), rgb.raw()
    splits = opened.manifest["splits"]
    assert {name: (splits[name]["n"], splits[name]["from"]) for name in SPLITS} == {
        "train": (45, "train"),
        "val": (15, "train"),
        "test": (12, "test"),  # whatever settings.test says
    }
    assert sorted(splits["train"]["indices"] + splits["val"]["indices"]) == list(range(60))
    assert (opened.images("test") == raw.test_images).all()
    assert opened.manifest["source"] == {
        "name": "rgb",
        "about": "Tiny coloured images.",
        "train": 60,
        "test": 12,
    }
    assert opened.image_shape == rgb.SHAPE and opened.classes == rgb.CLASSES
    assert opened.manifest["image"] == {"channels": 3, "height": 6, "width": 4}


def test_arrays_are_mapped_not_read_and_cannot_be_changed(folder: Path) -> None:
    images, labels = PreparedData.open(folder).images("val"), PreparedData.open(folder).labels("val")
    assert isinstance(images, np.memmap) and images.dtype == np.uint8 and labels.dtype == np.int64
    with pytest.raises(ValueError):
        images[0] = 0


def test_statistics_are_the_training_parts_in_units_of_0_to_1(folder: Path) -> None:
    opened = PreparedData.open(folder)
    pixels = opened.images("train").astype(np.float64) / 255
    np.testing.assert_allclose(opened.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(opened.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_statistics_do_not_depend_on_how_many_images_are_handled_at_a_time(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iakd.data.statistics.CHUNK", 7)
    other = tmp_path_factory.mktemp("other")
    write_store(other, rgb.raw(), rgb.settings())
    for name in [*ARRAYS, "manifest.json"]:
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name


def test_writing_twice_gives_the_same_bytes_and_another_seed_others(folder: Path) -> None:
    first = {name: (folder / name).read_bytes() for name in [*ARRAYS, "manifest.json"]}
    digest = PreparedData.open(folder).sha256
    write_store(folder, rgb.raw(), rgb.settings())
    assert {name: (folder / name).read_bytes() for name in first} == first
    write_store(folder, rgb.raw(), rgb.settings(split_seed=1))
    assert PreparedData.open(folder).sha256 != digest
    assert (folder / "train.images.npy").read_bytes() != first["train.images.npy"]


def test_hashes_are_those_of_the_files(folder: Path) -> None:
    manifest = PreparedData.open(folder).manifest
    listed = {file: sha for name in SPLITS for file, sha in manifest["splits"][name]["files"].items()}
    assert listed == {name: files.sha256_file(folder / name) for name in ARRAYS}
    assert len({manifest["sha256"], *(manifest["splits"][name]["sha256"] for name in SPLITS)}) == 4


def test_a_constant_channel_is_reported_and_does_not_divide_by_zero(tmp_path: Path) -> None:
    raw = rgb.raw()
    raw.train_images[:, 1] = 77
    write_store(tmp_path, raw, rgb.settings())
    opened = PreparedData.open(tmp_path)
    assert opened.mean[1] == pytest.approx(77 / 255) and opened.std[1] == 1 / 255
    assert [p for p in opened.manifest["problems"] if "constant" in p] == [
        "channel 1 is (almost) constant over the training images; its std is taken as 1/255"
    ]


def test_classes_of_nearly_the_same_name_are_told(tmp_path: Path) -> None:
    raw = rgb.raw()
    write_store(tmp_path, dataclasses.replace(raw, classes=["Cat", "cat ", "dog"]), rgb.settings())
    assert "classes of nearly the same name: 'Cat', 'cat '" in PreparedData.open(tmp_path).manifest["problems"]
    assert similar_names(["-1", "1", "0.1", "01", "c", "c++", "T-shirt", "t shirt", "T_SHIRT"]) == [
        "classes of nearly the same name: 'T-shirt', 't shirt', 'T_SHIRT'"
    ]


@pytest.mark.parametrize(
    ("counts", "told"), [([5, 5, 4], None), ([10, 5, 5], None), ([11, 5, 5], 52), ([7, 3], None), ([8, 2], 80)]
)
def test_a_class_that_dominates_is_told(counts: list[int], told: int | None) -> None:
    found = dominant_class(counts, ["a", "b", "c"][: len(counts)])
    assert len(found) == (told is not None)
    if told:
        least = min(counts)
        assert f"class 'a' has {told} % of the training images (the smallest class has {least}): judge by" in found[0]


def _copies(splits: dict[str, Split]) -> list[str]:
    return duplicates(splits, content_hashes(splits))


def test_copies_across_parts_and_contradictory_labels_are_counted() -> None:
    images, labels = rgb.images(12, 0), rgb.labels(12)
    images[5], labels[5] = images[0], labels[0]
    images[8], labels[8] = images[1], labels[1]
    images[9], labels[9] = images[1], labels[1] + 1
    images[11] = images[10]  # both in one part: no harm
    labels[11] = labels[10]
    parts = {"train": Split(images, labels, np.arange(0, 4)), "val": Split(images, labels, np.arange(4, 7))}
    assert _copies({**parts, "test": Split(images, labels, np.arange(7, 12))}) == [
        "1 of 3 val images are exact copies of train images",
        "2 of 5 test images are exact copies of train images",
        "images that occur more than once, with different labels: 1",
    ]
    assert _copies({**parts, "test": Split(images, labels, np.arange(10, 12))})[1:] == []


def test_problems_of_the_pixels_reach_the_manifest(tmp_path: Path) -> None:
    raw = rgb.raw()
    assert raw.test_images is not None and raw.test_labels is not None
    raw.test_images[:3], raw.test_labels[:3] = raw.train_images[:3], raw.train_labels[:3]
    write_store(tmp_path, raw, rgb.settings(val=1))
    problems = PreparedData.open(tmp_path).manifest["problems"]
    assert any("of 12 test images are exact copies of train images" in problem for problem in problems)


def test_a_class_that_a_part_lacks_is_reported(tmp_path: Path) -> None:
    raw = rgb.raw()
    assert raw.test_labels is not None
    raw.test_labels[:] = 1
    write_store(tmp_path, raw, rgb.settings())
    assert PreparedData.open(tmp_path).manifest["problems"] == ["2 of 3 classes have no image in test: ant, cat"]


def test_problems_that_the_reader_found_are_kept(tmp_path: Path) -> None:
    raw = rgb.raw()
    raw.problems.append("2 files are no images: a.txt, b.txt")
    write_store(tmp_path, raw, rgb.settings())
    assert PreparedData.open(tmp_path).manifest["problems"][0] == "2 files are no images: a.txt, b.txt"


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (rgb.raw(60), {"val": 60}, r"^dataset\.val: 60 of 60 images leave none for training"),
        (rgb.raw(60, None), {"val": 50, "test": 10}, r"^dataset\.val \+ dataset\.test: 60 of 60 images"),
        (rgb.raw(60), {"val": 58}, r"^class '(ant|bee|cat)': none of its 20 images is left for training"),
    ],
)
def test_too_few_images_are_the_users_mistake(
    raw: SourceData, changes: dict[str, int], message: str, folder: Path
) -> None:
    before = PreparedData.open(folder).sha256
    with pytest.raises(UserError, match=message) as error:
        write_store(folder, raw, rgb.settings(**changes))
    assert "\n" not in str(error.value)
    assert PreparedData.open(folder).sha256 == before  # nothing was touched


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("check", [True, False])
def test_files_that_are_missing_or_of_another_size_are_named(folder: Path, name: str, check: bool) -> None:
    path, content = folder / name, (folder / name).read_bytes()
    for damaged in (
        content[:-1],
        content[:200],
        content[:60],
        b"",
        content + b"\0",
        b"PK\x03\x04" + content[4:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name} is damaged.*run `iakd prepare` again$"):
            PreparedData.open(folder, check)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist: run `iakd prepare` again$"):
        PreparedData.open(folder, check)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_changed_byte_is_noticed_by_its_hash(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-8] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} was altered.*run `iakd prepare` again$"):
        PreparedData.open(folder)
    PreparedData.open(folder, check=False)  # sizes only


def test_a_damaged_header_is_one_line_whatever_numpy_makes_of_it(folder: Path) -> None:
    path = folder / "val.images.npy"
    content = path.read_bytes()
    for position in range(0, 128, 3):
        for value in b'\0\xff("\n':
            damaged = bytearray(content)
            damaged[position] = value
            if damaged != content:
                path.write_bytes(damaged)
                with pytest.raises(UserError, match=r"^[^\n]*val\.images\.npy (is damaged|was altered)[^\n]*$"):
                    PreparedData.open(folder)


def test_a_missing_or_damaged_manifest_is_named(folder: Path) -> None:
    path = folder / "manifest.json"
    content = path.read_text()
    for damaged in (content[:100], "", "[]", "{}", "3", json.dumps({**json.loads(content), "splits": []})):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"^[^\n]*manifest\.json is damaged[^\n]*run `iakd prepare`[^\n]*$"):
            PreparedData.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json does not exist: run `iakd prepare`$"):
        PreparedData.open(folder)


@pytest.mark.parametrize("key", ["classes", "image", "mean", "std", "problems", "settings", "sha256", "splits"])
def test_every_entry_of_the_manifest_that_is_used_must_be_there(folder: Path, key: str) -> None:
    rewrite(folder, lambda manifest: manifest.pop(key))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        PreparedData.open(folder)


def test_hashes_in_the_manifest_must_agree(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest["splits"]["val"]["files"].update({"val.labels.npy": "0" * 64}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        PreparedData.open(folder)


@pytest.mark.parametrize(
    "change", [{"mean": [0.5]}, {"std": [1.0]}, {"classes": ["a"] * 10}, {"problems": ["x"]}, {"note": "by hand"}]
)
def test_a_manifest_that_was_changed_is_noticed_by_its_hash(folder: Path, change: dict[str, Any]) -> None:
    """Trainings would take it, and nothing else would tell."""
    rewrite(folder, lambda manifest: manifest.update(change))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*run `iakd prepare` again"):
        PreparedData.open(folder)


def test_data_of_other_settings_are_refused(folder: Path) -> None:
    settings = rgb.settings().model_dump(mode="json")
    PreparedData.open(folder, settings=settings)
    with pytest.raises(UserError, match="prepared with other settings"):
        PreparedData.open(folder, settings={**settings, "val": 16})


def test_a_full_disk_leaves_earlier_data_as_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real, written = writer.in_chunks, []

    def full(array: Any, indices: Any) -> Any:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return real(array, indices)

    monkeypatch.setattr(writer, "in_chunks", full)
    with pytest.raises(OSError, match="No space left"):
        write_store(folder, rgb.raw(), rgb.settings(split_seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_mixture_of_old_and_new_files_has_no_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    real, moved = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        if target.suffix == ".npy":
            if len(moved) == 3:
                raise OSError(errno.EIO, "Input/output error")
            moved.append(target.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(OSError, match="Input/output"):
        write_store(folder, rgb.raw(), rgb.settings(split_seed=1))
    changed = [name for name, content in before.items() if (folder / name).read_bytes() != content]
    assert 0 < len(changed) < 6 and not list(folder.glob(".*"))
    with pytest.raises(UserError, match=r"manifest\.json does not exist: run `iakd prepare`$"):
        PreparedData.open(folder)


def test_what_a_killed_writer_left_is_cleared_away(folder: Path) -> None:
    (folder / ".train.images.npy.x1y2").write_bytes(b"half")
    (folder / ".manifest.json.z3").write_bytes(b"half")
    write_store(folder, rgb.raw(), rgb.settings())
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ARRAYS, "manifest.json"])


def test_a_reader_that_breaks_the_rules_is_told() -> None:
    good = rgb.raw()
    with pytest.raises(ValueError, match="uint8"):
        SourceData(good.train_images.astype(np.float32), good.train_labels, None, None, rgb.CLASSES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected labels int64"):
        SourceData(good.train_images, good.train_labels[:-1], None, None, rgb.CLASSES)
    with pytest.raises(ValueError, match="for 2 classes"):
        SourceData(good.train_images, good.train_labels, None, None, rgb.CLASSES[:2])
    with pytest.raises(ValueError, match="or neither"):
        SourceData(good.train_images, good.train_labels, good.test_images, None, rgb.CLASSES)
    with pytest.raises(ValueError, match="training images"):
        SourceData(good.train_images, good.train_labels, good.train_images[:, :1], good.train_labels, rgb.CLASSES)
