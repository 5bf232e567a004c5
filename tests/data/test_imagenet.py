"""ImageNet's layouts, in miniature."""

from pathlib import Path
from typing import Any

import photos
import pytest

from iakd.config import Dataset
from iakd.data.sources import folders
from iakd.data.store import PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError

WNIDS = ["n01440764", "n01443537", "n02084071"]


def settings(path: Path, **changes: Any) -> Dataset:
    return Dataset.model_validate({"source": "imagenet", "path": str(path), "size": 16, "val": 0.25, **changes})


def images(folder: Path, names: list[str], seed: int) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(photos.encoded(photos.photo(40 + number, 50, seed + number), "JPEG"))


def train(place: Path, per: int = 4) -> Path:
    for position, wnid in enumerate(WNIDS):
        images(place / "train" / wnid, [f"{wnid}_{number}.JPEG" for number in range(per)], 100 * position)
    return place


def class_folders(place: Path) -> Path:
    train(place)
    for position, wnid in enumerate(WNIDS):
        images(place / "val" / wnid, [f"ILSVRC2012_val_{position:08}.JPEG"], 1000 + position)
    return place


def test_defaults_are_those_of_the_field() -> None:
    chosen = Dataset.model_validate({"source": "imagenet", "path": "x"})
    assert (chosen.size, chosen.crop_pct, chosen.storage, chosen.name) == (224, 0.875, "auto", "imagenet")


@pytest.mark.parametrize("inside", [".", "ILSVRC/Data/CLS-LOC"])
def test_the_published_validation_images_are_the_test(tmp_path: Path, inside: str) -> None:
    class_folders(tmp_path / inside)
    names = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    (tmp_path / "LOC_synset_mapping.txt").write_text(names)
    chosen = settings(tmp_path, storage="files")
    write_store(tmp_path / "store", folders.read_imagenet(chosen), chosen)
    store = PreparedData.open(tmp_path / "store")
    assert store.classes == ["tench", "goldfish", "n02084071"]
    splits = store.manifest["splits"]
    assert {name: (part["n"], part["from"]) for name, part in splits.items()} == {
        "train": (9, "train"),
        "val": (3, "train"),
        "test": (3, "test"),
    }
    assert store.manifest["problems"][0] == "3 of ImageNet's 1,000 classes"
    paths = [bytes(row["path"]).decode() for row in store.files("test")]
    place = "" if inside == "." else f"{inside}/"
    assert paths == [f"{place}val/{wnid}/ILSVRC2012_val_{i:08}.JPEG" for i, wnid in enumerate(WNIDS)]
    assert store.labels("test").tolist() == [0, 1, 2]
    assert len(photos.streamed(store)) == 9


def test_validation_images_in_one_folder_with_a_list(tmp_path: Path) -> None:
    train(tmp_path)
    names = [f"ILSVRC2012_val_{number:08}" for number in range(4)]
    images(tmp_path / "val", [f"{name}.JPEG" for name in names], 1000)
    with pytest.raises(UserError, match=r"^[^\n]*val has no folders of classes, and [^\n]*LOC_val_solution\.csv"):
        folders.read_imagenet(settings(tmp_path))
    lines = [f"{name},{WNIDS[-i % 3]} 1 2 30 40 {WNIDS[-i % 3]} 5 6 7 8 " for i, name in enumerate(names)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))
    (tmp_path / "words.txt").write_text("n02084071\tdog, domestic dog\n")
    raw = folders.read_imagenet(settings(tmp_path))
    assert raw.test_labels is not None and raw.test_labels.tolist() == [0, 2, 1, 0]
    assert raw.classes == ["n01440764", "n01443537", "dog"]
    assert not any("does not list" in problem for problem in raw.problems)
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[:2], *lines[3:]]))
    assert folders.read_imagenet(settings(tmp_path)).problems[0] == (
        f"{tmp_path}/val: 1 images that LOC_val_solution.csv does not list were ignored: {names[2]}.JPEG"
    )
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines, lines[0]]))
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv: lists an image twice"):
        folders.read_imagenet(settings(tmp_path))
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000000,n0 1 2 3 4")
    with pytest.raises(UserError, match="cannot use the line 'ILSVRC2012_val_00000000,n0 1 2 3 4'"):
        folders.read_imagenet(settings(tmp_path))


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folders train/ and val/: not ImageNet's layout"):
        folders.read_imagenet(settings(tmp_path))
    class_folders(tmp_path)
    images(tmp_path / "train/cats", ["x.JPEG"], 7)
    with pytest.raises(UserError, match="train/cats is not named by a WordNet id such as n01440764"):
        folders.read_imagenet(settings(tmp_path))


def test_a_lost_class_takes_its_name_along(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for path in (tmp_path / "train" / WNIDS[0]).iterdir():
        path.write_bytes(b"")
    (tmp_path / "words.txt").write_text("".join(f"{wnid}\tname {wnid}\n" for wnid in WNIDS))
    raw = folders.read_imagenet(settings(tmp_path, storage="files", on_bad_file="skip"))
    assert raw.classes == ["name n01443537", "name n02084071"]
    assert raw.test_labels is not None and raw.test_labels.tolist() == [0, 1]
