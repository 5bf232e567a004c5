"""Folders of images, and what becomes of odd files in them."""

import json
import os
import struct
import zlib
from pathlib import Path

import kinds
import numpy as np
import pytest

from iakd.config import Dataset
from iakd.data.decoding import decode_all, from_bytes
from iakd.data.source_data import SourceData
from iakd.data.sources import folders
from iakd.data.splits import split_source
from iakd.data.store import PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError


def settings(path: Path, **changes: object) -> Dataset:
    return Dataset.model_validate({"source": "image_folder", "path": str(path), "size": 8, **changes})


def read(path: Path, **changes: object) -> SourceData:
    return folders.read_image_folder(settings(path, **changes))


def folder(root: Path, per: int = 4, classes: tuple[str, ...] = ("ant", "bee", "cät 1"), seed: int = 0) -> Path:
    for position, name in enumerate(classes):
        images = kinds.pixels(per, seed + position, (3, 8, 8))
        kinds.unpacked(root, {f"{name}/{number}.png": kinds.png(image) for number, image in enumerate(images)})
    return root


def test_parts_in_folders_of_their_own(tmp_path: Path) -> None:
    for part, per, seed in (("train", 4, 0), ("valid", 2, 10), ("test", 3, 20)):
        folder(tmp_path / part, per, seed=seed)
    raw = read(tmp_path)
    assert raw.classes == ["ant", "bee", "cät 1"] and raw.problems == []
    assert raw.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (raw.train_images[4:8] == kinds.pixels(4, 1, (3, 8, 8))).all()
    assert raw.val_images is not None and raw.test_images is not None
    assert (raw.val_images[:2] == kinds.pixels(2, 10, (3, 8, 8))).all()
    assert len(raw.val_images) == 6 and len(raw.test_images) == 9
    write_store(tmp_path / "store", raw, settings(tmp_path))
    splits = PreparedData.open(tmp_path / "store").manifest["splits"]
    assert {name: (part["n"], part["from"]) for name, part in splits.items()} == {
        "train": (12, "train"),
        "val": (6, "val"),
        "test": (9, "test"),
    }


def test_a_single_folder_of_classes_is_split_by_class(tmp_path: Path) -> None:
    raw = read(folder(tmp_path, 20))
    assert raw.val_images is None and raw.test_images is None
    parts = split_source(raw, settings(tmp_path))
    assert {name: part.per_class(3) for name, part in parts.items()} == {
        "train": [14] * 3,
        "val": [2] * 3,
        "test": [4] * 3,
    }
    assert sorted(np.concatenate([part.indices for part in parts.values()]).tolist()) == list(range(60))


def test_validation_and_test_are_drawn_only_where_there_is_none(tmp_path: Path) -> None:
    folder(tmp_path / "train", 10)
    folder(tmp_path / "validation", 2, seed=50)
    raw = read(tmp_path)
    parts = split_source(raw, settings(tmp_path, test=6))
    assert {name: (len(part.indices), part.origin) for name, part in parts.items()} == {
        "train": (24, "train"),
        "val": (6, "val"),
        "test": (6, "train"),
    }


def test_names_hidden_files_and_links(tmp_path: Path) -> None:
    root = folder(tmp_path / "ümlaut and space")
    kinds.unpacked(root, {".hidden/x.png": b"", "ant/.x.png": b"", "ant/Thumbs.db": b"", "__MACOSX/x.png": b""})
    kinds.unpacked(root, {"notes.txt": b"", "bee/list.csv": b""})
    kinds.unpacked(root, {"ant/deeper/é.PNG": kinds.png(kinds.pixels(1, 9, (3, 8, 8))[0])})
    (root / "bee/link.png").symlink_to(root / "ant/0.png")
    (root / "bee/loop").symlink_to(root)
    raw = read(root)
    assert np.bincount(raw.train_labels).tolist() == [5, 5, 4]
    assert raw.problems == [
        f"{root}: 2 files are not images, by their names, and were not read: bee/list.csv, notes.txt",
        f"{root}: 1 link leads back to a folder above it, and was not followed: bee/loop",
    ]


BAD = {
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "text.jpg": (b"hello" * 99, "is not an image in a known format"),
    "cut.png": (kinds.png(kinds.pixels(1, 3, (3, 40, 40))[0])[:-900], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_or_left_out(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    good = read(folder(tmp_path))
    kinds.unpacked(tmp_path, {f"bee/{name}": content})
    with pytest.raises(UserError, match=rf"^[^\n]*bee/{name} {reason}[^\n]*dataset.on_bad_file to skip$"):
        read(tmp_path)
    raw = read(tmp_path, on_bad_file="skip")
    assert (raw.train_images == good.train_images).all() and (raw.train_labels == good.train_labels).all()
    assert len(raw.problems) == 1 and "1 bad file was left out" in raw.problems[0] and name in raw.problems[0]


def test_many_bad_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    folder(tmp_path)
    kinds.unpacked(tmp_path, {f"bee/x{number:02}.png": b"" for number in range(30)})
    (problem,) = read(tmp_path, on_bad_file="skip").problems
    assert "30 bad files" in problem and "x19.png" in problem and "x20.png" not in problem and "(10 more)" in problem


def test_a_link_to_nowhere_and_a_file_that_may_not_be_read_are_bad_files(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "ant/9.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"9\.png cannot be read \(No such file"):
        read(tmp_path)
    (tmp_path / "ant/9.png").unlink()
    (tmp_path / "ant/8.png").mkdir()  # a folder with the name of an image is looked into, and empty
    assert len(read(tmp_path).train_labels) == 12


@pytest.mark.parametrize("storage", ["array", "files"])
def test_a_pipe_is_a_bad_file_that_nobody_waits_for(storage: str, tmp_path: Path) -> None:
    os.mkfifo(folder(tmp_path) / "ant/9.png")
    with pytest.raises(UserError, match=r"9\.png is not a regular file"):
        read(tmp_path, storage=storage)


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    folder(tmp_path / "x")
    (tmp_path / "x/ant" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    raw = read(tmp_path / "x", on_bad_file="skip")
    path = write_store(tmp_path / "data", raw, settings(tmp_path / "x", on_bad_file="skip"))
    assert "\\udcff.png is empty" in json.loads(path.read_text())["problems"][0]
    (tmp_path / "x/bee").rename(tmp_path / "x" / os.fsdecode(b"\xfe"))
    with pytest.raises(UserError, match="udcfe is no readable text: rename it") as caught:
        read(tmp_path / "x", on_bad_file="skip")
    str(caught.value).encode()


def test_names_with_line_breaks_do_not_break_messages(tmp_path: Path) -> None:
    root = folder(tmp_path / "x")
    (root / "ant/a\nb.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"ant/a\\nb\.png is empty \(0 bytes\): repair"):
        read(root)
    (root / "bee\u2028").mkdir()
    with pytest.raises(UserError, match=r"the name of the folder bee\\u2028 is no readable text: rename it"):
        read(root)


def bomb(side: int) -> bytes:
    """A PNG of side×side grey pixels that says so in its header and has no more."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize("side", [9_500, 11_000, 30_000])
def test_an_enormous_image_is_refused_by_its_header(side: int, tmp_path: Path) -> None:
    idat = b"IDAT" + zlib.compress(b"")
    content = bomb(side) + struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    kinds.unpacked(folder(tmp_path), {"ant/big.png": content})
    with pytest.raises(UserError, match=r"big\.png has .* treated as a decompression bomb"):
        read(tmp_path)


def test_layouts_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    root = tmp_path / "x"
    root.mkdir()
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no folders; each class"):
        read(root)
    kinds.unpacked(tmp_path, {"file.zip": b""})
    with pytest.raises(UserError, match="is not a folder; unpack archives first"):
        read(tmp_path / "file.zip")
    folder(root, classes=("one",))
    with pytest.raises(UserError, match=r"has 1 folder\(s\) of images; at least two are needed"):
        read(root)
    folder(root / "a/test")
    with pytest.raises(UserError, match="has test/ but no train/"):
        read(root / "a")
    folder(root / "a/train", classes=("ant", "bee"))
    with pytest.raises(UserError, match=r"test/cät 1: [^\n]*train has no class of that name"):
        read(root / "a")
    folder(root / "b/val")
    folder(root / "b/valid")
    with pytest.raises(UserError, match="both mean val"):
        read(root / "b")
    for name in ("ant", "bee"):
        (root / "c" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="has no images"):
        read(root / "c")


def test_an_empty_class_is_refused_or_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "train", classes=("a", "c", "d"))
    folder(tmp_path / "test", classes=("a", "c", "d"), seed=30)
    (tmp_path / "train/b").mkdir()
    with pytest.raises(UserError, match=r"train/b has no images: add images, remove the folder"):
        read(tmp_path)
    raw = read(tmp_path, on_bad_file="skip")
    assert raw.classes == ["a", "c", "d"] and raw.problems == ["classes without training images were left out: b"]
    assert raw.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for number in range(4):
        (tmp_path / f"train/c/{number}.png").write_bytes(b"")
    raw = read(tmp_path, on_bad_file="skip")
    assert raw.classes == ["a", "d"] and raw.train_labels.max() == 1 and raw.test_labels is not None
    assert (raw.test_images == np.concatenate([kinds.pixels(4, 30, (3, 8, 8)), kinds.pixels(4, 32, (3, 8, 8))])).all()
    for number in range(4):
        (tmp_path / f"train/d/{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match="fewer than two classes"):
        read(tmp_path, on_bad_file="skip")


def test_without_a_size_all_images_must_have_one(tmp_path: Path) -> None:
    raw = read(folder(tmp_path), size=None)
    assert raw.train_images.shape == (12, 3, 8, 8)
    kinds.unpacked(tmp_path, {"bee/x.png": kinds.png(kinds.pixels(1, 9, (3, 6, 9))[0])})
    with pytest.raises(UserError, match=r"images differ in size \(8×8, then 6×9 in .*x\.png\): set dataset.size"):
        read(tmp_path, size=None)
    assert read(tmp_path, size=[4, 6]).train_images.shape == (13, 3, 4, 6)


def test_mixed_and_enlarged_sizes_are_told(tmp_path: Path) -> None:
    folder(tmp_path)
    kinds.unpacked(tmp_path, {"bee/x.png": kinds.png(kinds.pixels(1, 9, (3, 30, 20))[0])})
    assert read(tmp_path, size=16).problems == [
        f"{tmp_path}: images have 2 sizes, 8×8 to 30×20; all were scaled to 16×16",
        f"{tmp_path}: 12 images are smaller than 16×16 and were enlarged",
    ]


def test_an_array_that_would_be_too_large_is_refused_beforehand() -> None:
    small = from_bytes("x", kinds.png(kinds.pixels(1, 0, (3, 8, 8))[0]))
    with pytest.raises(UserError, match=r"would take 36\.6 GiB, more than the 8 GiB .* smaller dataset.size"):
        decode_all([small], 200_000, 3, (256, 256), "refuse", "here")
