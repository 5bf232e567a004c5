"""Folders as they are found in the wild: names of parts, links, and what cannot be told apart."""

import errno
import os
import unicodedata
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest

from iakd.config import Dataset
from iakd.data.layout import files_below, part_of, parts_among
from iakd.data.source_data import SourceData
from iakd.data.sources import download, folders
from iakd.data.sources.download import fingerprint
from iakd.errors import UserError

COUNTS = {"train": 4, "val": 2, "test": 3}  # images of each class in a part


def settings(path: Path, **changes: object) -> Dataset:
    return Dataset.model_validate({"source": "image_folder", "path": str(path), "size": 8, **changes})


def read(path: Path, **changes: object) -> SourceData:
    return folders.read_image_folder(settings(path, **changes))


def images(folder: Path, n: int = 4, seed: int = 0) -> Path:
    pixels = kinds.pixels(n, seed, (3, 8, 8))
    return kinds.unpacked(folder, {f"{number}.png": kinds.png(image) for number, image in enumerate(pixels)})


def classes(folder: Path, part: str = "train", names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for position, name in enumerate(names):
        images(folder / name, COUNTS[part], 10 * len(part) + position)
    return folder


def counted(found: SourceData) -> dict[str, list[int]]:
    """The number of images of each class in each part."""
    labels = {"train": found.train_labels, "val": found.val_labels, "test": found.test_labels}
    return {part: np.bincount(some).tolist() for part, some in labels.items() if some is not None}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("training_set", "test_set"), ("train", "test")),
        (("Training", "Testing"), ("train", "test")),
        (("TRAIN", "Valid", "TEST"), ("train", "val", "test")),
        (("seg_train/seg_train", "seg_test/seg_test"), ("train", "test")),
        (("trn", "dev", "holdout"), ("train", "val", "test")),
        (("train", "held-out"), ("train", "test")),
        (("Train Images", "Eval Images"), ("train", "test")),
        (("trainset", "evaluation"), ("train", "test")),
        (("train2017", "val2017"), ("train", "val")),
        (("train_val", "test1"), ("train", "test")),
        (("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"), ("train", "test")),
        (("cars-train", "cars-validation"), ("train", "val")),
        (("archive/data/train", "archive/data/tests"), ("train", "test")),
        (("train/images", "test/images"), ("train", "test")),
        (("TrainData", "tst"), ("train", "test")),
    ],
)
def test_parts_by_their_common_names(names: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    for name, part in zip(names, parts, strict=True):
        classes(tmp_path / name, part)
    found = read(tmp_path)
    assert found.classes == ["cat", "dog"] and found.problems == []
    assert counted(found) == {part: [COUNTS[part]] * 2 for part in parts}


@pytest.mark.parametrize("names", [("train_station", "bus_station"), ("testudo", "trainer"), ("contest", "deval")])
def test_names_that_only_resemble_those_of_parts_are_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    assert read(classes(tmp_path, names=names)).classes == sorted(names)


def test_words_for_parts() -> None:
    meant = {
        "train-00000-of-00002": "train",
        "test_set": "test",
        "x_dev": "val",
        "Hold_Out": "test",
        "testset1": "test",
    }
    assert {name: part_of(name) for name in meant} == meant
    assert [part_of(name) for name in ("photos", "train_test_split", "latest", "")] == [None] * 4
    assert parts_among(["train_station", "test_station", "dev_board"]) == {
        "train_station": "train",
        "test_station": "test",
    }
    assert parts_among(["seg_pred", "seg_train", "n01440764"]) == {"seg_train": "train"}


def test_train_may_be_a_class(tmp_path: Path) -> None:
    classes(tmp_path, names=("bicycle", "train"))
    found = read(tmp_path)
    assert found.classes == ["bicycle", "train"] and found.problems == [
        f"{tmp_path}: train/ has no folders and counts as a class"
    ]
    classes(tmp_path / "x/train", names=("bicycle", "train"))
    classes(tmp_path / "x/test", "test", names=("bicycle", "train"))
    assert read(tmp_path / "x").classes == ["bicycle", "train"] and read(tmp_path / "x").problems == []


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (("train/cat", "train/dog", "test"), "test has no folders; the name means a part of the data, in which each"),
        (("train", "test"), "test has no folders; the name means a part of the data"),
        (("cat", "dog", "test"), "test has no folders; the name means a part"),
        (("valid", "invalid"), "valid has no folders; .* or rename it if it is a class"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "cat/test is a part of the data within a class, by its"),
        (("cat/x", "cat/holdout", "dog"), "cat/holdout is a part of the data within a class"),
        (("cat", "dog", "test/cat", "test/dog"), "has test/ but no train/"),
        (("train/cat", "train/dog", "train/val/cat", "train/val/dog"), "val is a part of the data beside classes, by"),
        (("trainA", "trainB", "testA", "testB"), "testA has no folders; the name means a part"),
        (("cat_train", "cat_test", "dog_train", "dog_test"), "cat_test has no folders; the name means a part"),
        (("mine/cat", "mine/dog", "yours/cat", "yours/dog"), "mine and yours/ both have the folders cat/ and dog/: if"),
        (("a/cat", "a/dog", "b/cat", "b/dog", "b/owl", "c/x"), "a and b/ both have the folders cat/ and dog/"),
        (("images", "masks"), "images is no class, by its name"),
        (("train/images", "train/labels"), "images is no class, by its name"),
        (("train/cat", "train/dog", "Train set/cat", "Train set/dog"), "both mean train: keep one of them"),
        (("train/cat", "train/dog", "test/Cat"), r"test/Cat: .*train has no class of that name \(did you mean 'cat'"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(made: tuple[str, ...], words: str, tmp_path: Path) -> None:
    for name in made:
        images(tmp_path / name)
    with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
        read(tmp_path)


def test_listed_classes_may_have_subfolders_of_the_same_names(tmp_path: Path) -> None:
    for position, name in enumerate(("cat/day", "cat/night", "dog/day", "dog/night")):
        images(tmp_path / name, seed=position)
    with pytest.raises(UserError, match=r"list the classes in dataset\.classes"):
        read(tmp_path)
    assert counted(read(tmp_path, classes=["cat", "dog"])) == {"train": [8, 8]}
    for name in ("cat/persian/0.png", "dog/poodle/0.png"):  # all folders are different, or in one class only
        kinds.unpacked(tmp_path / "x", {name: kinds.png(kinds.pixels(1, 0, (3, 8, 8))[0])})
    assert counted(read(tmp_path / "x")) == {"train": [1, 1]}


def test_both_forms_of_a_letter_are_the_same_class(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    classes(tmp_path / "train", names=(split, "dog"))
    classes(tmp_path / "test", "test", names=(composed, "dog"))
    images(tmp_path / "train" / composed, 1, 99)
    found = read(tmp_path)
    assert found.classes == [composed, "dog"] and counted(found) == {"train": [5, 4], "test": [3, 3]}
    for name in (composed, split):
        assert found.with_classes([name, "dog"]).classes == [composed, "dog"]


def test_files_beside_folders_are_told(tmp_path: Path) -> None:
    classes(tmp_path)
    kinds.unpacked(tmp_path, {"lost.png": b"", "notes.txt": b""})
    assert read(tmp_path).problems == [
        f"{tmp_path}: 1 file is not an image, by its name, and was not read: notes.txt",
        f"{tmp_path}: 1 image is in no folder of a class, and was not read: lost.png",
    ]
    classes(tmp_path / "x/train")
    kinds.unpacked(tmp_path / "x", {"test.zip": b"", "test.csv": b"", "a.jpg": b"", "README": b"", "pred/1.png": b""})
    assert read(tmp_path / "x").problems == [
        f"{tmp_path}/x: folders next to train/ were ignored: pred",
        f"{tmp_path}/x: files next to train/ were not read: a.jpg, test.csv, test.zip",
    ]


def test_links_are_followed_wherever_they_are(tmp_path: Path) -> None:
    real, photos = tmp_path / "real", tmp_path / "photos"
    classes(real / "train")
    classes(real / "elsewhere", "test")
    for name, target in (("train", "train"), ("test/cat", "elsewhere/cat"), ("test/dog/deep/deeper", "elsewhere/dog")):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).symlink_to(real / target)
    assert counted(read(photos)) == {"train": [4, 4], "test": [3, 3]} and read(photos).problems == []
    for name in ("above", "root", "self"):
        (photos / "test/dog" / name).symlink_to({"above": tmp_path, "root": "/", "self": "self"}[name])
    found = read(photos)
    assert counted(found) == {"train": [4, 4], "test": [3, 3]}
    assert found.problems == [
        f"{photos}/test: 1 file is not an image, by its name, and was not read: dog/self",
        f"{photos}/test: 2 links lead back to a folder above them, and were not followed: dog/above, dog/root",
    ]
    assert sorted(path.name for path in files_below(photos / "test/dog")) == ["0.png", "1.png", "2.png", "self"]


def change_size(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def change_content(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize("link", ["train", "train/cat", "train/cat/0.png", "photos", "hard"])
def test_changes_behind_links_change_the_fingerprint(link: str, tmp_path: Path) -> None:
    real, photos = classes(tmp_path / "real/train").parent, tmp_path / "photos"
    target = real / link if link.startswith("train") else real
    if link == "hard":
        (photos / "train/cat").mkdir(parents=True)
        os.link(real / "train/cat/0.png", photos / "train/cat/0.png")
    else:
        place = photos / link if link.startswith("train") else photos
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    seen = [fingerprint(settings(photos))]
    for change in (change_content, change_size):
        change(real / "train/cat/0.png")
        seen.append(fingerprint(settings(photos)))
    if link not in ("hard", "train/cat/0.png"):
        images(real / "train/cat", 5)
        seen.append(fingerprint(settings(photos)))
    assert len(set(seen)) == len(seen) and None not in seen


def test_a_fingerprint_is_that_of_contents_or_of_sizes_and_never_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = classes(tmp_path) / "cat/0.png"
    for limit in (download.CONTENT_BYTES, 0):
        monkeypatch.setattr(download, "CONTENT_BYTES", limit)
        before = fingerprint(settings(tmp_path))
        os.utime(file, (1, 1))
        assert fingerprint(settings(tmp_path)) == before
        change_content(file)
        assert (fingerprint(settings(tmp_path)) == before) == (limit == 0)
        change_size(file)
        assert fingerprint(settings(tmp_path)) != before
    archive = kinds.zipped(tmp_path / "x.zip", {"a": b"1"})
    link = tmp_path / "link.zip"
    link.symlink_to(archive)
    before = fingerprint(settings(link))
    kinds.zipped(archive, {"a": b"12"})
    assert fingerprint(settings(link)) != before


def test_odd_files_have_a_fingerprint_and_nobody_waits_for_them(tmp_path: Path) -> None:
    classes(tmp_path)
    os.mkfifo(tmp_path / "cat/pipe")
    (tmp_path / "cat/nowhere").symlink_to("gone")
    (tmp_path / "cat/self").symlink_to("self")
    (tmp_path / "dog/above").symlink_to(tmp_path)
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    first = fingerprint(settings(tmp_path))
    (tmp_path / "cat/gone").write_bytes(b"now there")
    assert first is not None and fingerprint(settings(tmp_path)) != first
    assert fingerprint(settings(tmp_path / "missing")) is None


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be listed, within a class; permissions do not stop root, who may run this."""
    list_folder = os.scandir
    closed = classes(tmp_path / "photos") / "cat" / "closed"
    images(closed, 3)

    def refuse(path: Path) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return closed


@pytest.mark.parametrize("on_bad_file", ["refuse", "skip"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(locked: Path, on_bad_file: str) -> None:
    with pytest.raises(UserError) as raised:
        read(locked.parents[1], on_bad_file=on_bad_file)
    assert str(raised.value) == f"dataset.path: {locked} cannot be read (Permission denied)"


def test_a_folder_that_can_be_read_again_is_noticed(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(settings(locked.parents[1]))
    assert before is not None and fingerprint(settings(locked.parents[1])) == before
    monkeypatch.undo()
    assert fingerprint(settings(locked.parents[1])) != before
