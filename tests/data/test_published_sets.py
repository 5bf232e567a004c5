"""Fashion-MNIST, SVHN, STL-10 and Tiny-ImageNet in their publishers' formats."""

import gzip
import zipfile
from pathlib import Path

import kinds
import numpy as np
import pytest

from iakd.config import Dataset
from iakd.data import decoding, sources
from iakd.data.source_data import SourceData
from iakd.data.sources import fashion_mnist
from iakd.errors import UserError

DIGITS = np.array([3, 0, 9, 1, 1, 7], dtype=np.uint8)


def read(source: str, path: Path, **settings: object) -> SourceData:
    return sources.read(Dataset.model_validate({"source": source, "path": str(path), **settings}))


def fashion_files() -> dict[str, bytes]:
    images = {"train": kinds.pixels(6, 0, (28, 28)), "t10k": kinds.pixels(4, 1, (28, 28))}
    return kinds.fashion(images, {"train": DIGITS, "t10k": DIGITS[:4]})


def test_fashion_mnist_compressed_unpacked_and_as_torchvision_keeps_it(tmp_path: Path) -> None:
    files = fashion_files()
    plain = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}
    for number, packed in enumerate((files, plain, {**files, **plain})):
        raw = read("fashion_mnist", kinds.unpacked(tmp_path / f"{number}/raw", packed).parent)
        assert (raw.train_images[:, 0] == kinds.pixels(6, 0, (28, 28))).all() and raw.train_images.ndim == 4
        assert raw.test_images is not None and raw.test_labels is not None
        assert (raw.test_images[:, 0] == kinds.pixels(4, 1, (28, 28))).all()
        assert raw.train_labels.tolist() == DIGITS.tolist() and raw.test_labels.tolist() == DIGITS[:4].tolist()
        assert raw.classes[8:] == ["Bag", "Ankle boot"]
        assert raw.problems == ["6 train images, but the publisher's files have 60,000"]
    assert len(read("fashion_mnist", kinds.zipped(tmp_path / "x.zip", files)).train_labels) == 6


def test_other_data_in_files_of_fashion_mnist_s_names_are_told(tmp_path: Path) -> None:
    images = {"train": np.zeros((60_000, 1, 1), np.uint8), "t10k": np.zeros((4, 1, 1), np.uint8)}
    labels = np.full(60_000, 7, np.uint8)
    for first in (5, 9):  # as in MNIST, and in Fashion-MNIST
        labels[:3], labels[-3:] = (first, 0, 0), (3, 0, 5)
        kinds.unpacked(tmp_path, kinds.fashion(images, {"train": labels, "t10k": DIGITS[:4]}))
        problems = read("fashion_mnist", tmp_path).problems
        assert [problem.split(";")[0] for problem in problems] == [f"{tmp_path}: not Fashion-MNIST's labels"] * (
            first == 5
        )
    kinds.unpacked(tmp_path, kinds.fashion({"t10k": np.zeros((4, 2, 2), np.uint8)}, {"t10k": DIGITS[:4]}))
    with pytest.raises(UserError, match="images of train and t10k differ in size"):
        read("fashion_mnist", tmp_path)


@pytest.mark.parametrize("name", list(fashion_files()))
def test_a_damaged_or_missing_idx_file_is_named(name: str, tmp_path: Path) -> None:
    files = fashion_files()
    content = gzip.decompress(files[name])
    stem = name.removesuffix(".gz")
    damaged = (content[:-1], content[:6], b"", b"\0\0\x09" + content[3:])
    for bad in (*map(gzip.compress, damaged), files[name][:-9]):
        with pytest.raises(UserError, match=rf"^[^\n]*{stem}[^\n]* is damaged[^\n]*$"):
            read("fashion_mnist", kinds.unpacked(tmp_path, {**files, name: bad}))
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        read("fashion_mnist", tmp_path)


def test_images_and_labels_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="for the shape"):
        fashion_mnist.idx(kinds.idx(DIGITS)[:-1], 1)


def test_svhn(tmp_path: Path) -> None:
    train, test = kinds.pixels(6, 0), kinds.pixels(4, 1)
    files = {"train_32x32.mat": kinds.mat(train, DIGITS), "test_32x32.mat": kinds.mat(test, DIGITS[2:])}
    raw = read("svhn", kinds.unpacked(tmp_path, files))
    assert (raw.train_images == train).all() and (raw.test_images == test).all()
    assert raw.train_labels.tolist() == DIGITS.tolist()  # 10 means 0
    assert raw.classes == list("0123456789")
    for bad in (files["test_32x32.mat"][:-100], b"", b"x" * 500, kinds.mat(test, DIGITS)):
        with pytest.raises(UserError, match=r"^[^\n]*test_32x32\.mat is damaged[^\n]*$"):
            read("svhn", kinds.unpacked(tmp_path, {"test_32x32.mat": bad}))
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"test_32x32\.mat is missing"):
        read("svhn", tmp_path)


def stl10_files(train: np.ndarray, test: np.ndarray) -> dict[str, bytes]:
    files = {}
    for part, images, labels in (("train", train, DIGITS), ("test", test, DIGITS[:4])):
        files[f"stl10_binary/{part}_X.bin"] = images.transpose(0, 1, 3, 2).tobytes()  # column by column
        files[f"stl10_binary/{part}_y.bin"] = (labels + 1).tobytes()
    return {**files, "stl10_binary/unlabeled_X.bin": b"not read"}


def test_stl10(tmp_path: Path) -> None:
    train, test = kinds.pixels(6, 0, (3, 96, 96)), kinds.pixels(4, 1, (3, 96, 96))
    files = stl10_files(train, test)
    for path in (kinds.unpacked(tmp_path / "a", files), kinds.tar(tmp_path / "b/stl10_binary.tar.gz", files)):
        raw = read("stl10", path)
        assert (raw.train_images == train).all() and (raw.test_images == test).all()
        assert raw.train_labels.tolist() == DIGITS.tolist() and raw.classes[7] == "monkey"
    for name, bad in (("train_X.bin", b"x"), ("test_y.bin", b"\0\1\2\3"), ("test_y.bin", b""), ("train_y.bin", b"\1")):
        with pytest.raises(UserError, match="do not match"):
            read("stl10", kinds.unpacked(tmp_path / "c", {**files, f"stl10_binary/{name}": bad}))
    kinds.unpacked(tmp_path / "d", {name: c for name, c in files.items() if "train_y" not in name})
    with pytest.raises(UserError, match=r"train_y\.bin is missing"):
        read("stl10", tmp_path / "d")


def tiny(classes: int = 3) -> dict[str, bytes]:
    """Training images 3 a class, of which the last is grey; validation images 2 a class."""
    ids = [f"n{number:08}" for number in (30, 10, 20)][:classes]
    images = kinds.pixels(3 * classes, 0, (3, 64, 64))
    files = {"wnids.txt": "\n".join(ids).encode()}
    words = {"n00000010": "crane, bird", "n00000020": "crane", "n00000030": "goldfish, Carassius auratus"}
    files["words.txt"] = "\n".join(f"{wnid}\t{name}" for wnid, name in words.items()).encode()
    lines = []
    for position, wnid in enumerate(ids):
        for number in range(3):
            image = images[3 * position + number]
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = kinds.png(image[:1] if number == 2 else image)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        for number in range(2):
            files[f"val/images/val_{2 * position + number}.JPEG"] = kinds.png(images[position])
            lines.append(f"val_{2 * position + number}.JPEG\t{wnid}\t0\t0\t63\t63")
    files["val/val_annotations.txt"] = ("\n".join(lines) + "\n").encode()
    files["test/images/test_0.JPEG"] = b"not read"
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def test_tiny_imagenet_in_its_own_layout(tmp_path: Path) -> None:
    files = tiny()
    images = kinds.pixels(9, 0, (3, 64, 64))
    root = kinds.unpacked(tmp_path / "a", files)
    for path in (root, root / "tiny-imagenet-200", kinds.zipped(tmp_path / "tiny.zip", files)):
        raw = read("tiny_imagenet", path)
        assert raw.classes == ["crane (n00000010)", "crane (n00000020)", "goldfish"]
        assert raw.train_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert (raw.train_images[0] == images[3]).all() and (raw.train_images[6] == images[0]).all()
        assert (raw.train_images[2] == images[5][:1]).all()  # grey in three channels
        assert raw.test_images is not None and raw.test_labels is not None
        assert len(raw.test_images) == 6 and sorted(raw.test_labels.tolist()) == [0, 0, 1, 1, 2, 2]
        assert raw.problems == ["3 of Tiny-ImageNet's 200 classes"]


def by_folder(files: dict[str, bytes], below: str) -> dict[str, bytes]:
    """The validation images in folders of their classes, as a script that many people use leaves them."""
    lines = files["tiny-imagenet-200/val/val_annotations.txt"].decode().splitlines()
    folders = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
    val = "tiny-imagenet-200/val/"
    sorted_in = {f"{val}{wnid}/{below}{name}": files[f"{val}images/{name}"] for name, wnid in folders.items()}
    return {name: content for name, content in files.items() if not name.startswith(val)} | sorted_in


@pytest.mark.parametrize("below", ["", "images/"])
def test_tiny_imagenet_with_validation_images_in_class_folders(below: str, tmp_path: Path) -> None:
    wanted = read("tiny_imagenet", kinds.unpacked(tmp_path / "wanted", tiny()))
    assert wanted.test_images is not None and wanted.test_labels is not None
    test_images = wanted.test_images[np.argsort(wanted.test_labels, kind="stable")]
    files = by_folder(tiny(), below)
    kept = files | {"tiny-imagenet-200/val/val_annotations.txt": tiny()["tiny-imagenet-200/val/val_annotations.txt"]}
    for number, some in enumerate((files, kept)):
        for path in (kinds.unpacked(tmp_path / f"{number}", some), kinds.zipped(tmp_path / f"{number}.zip", some)):
            raw = read("tiny_imagenet", path)
            assert (raw.train_images == wanted.train_images).all() and raw.problems == wanted.problems
            assert (raw.test_images == test_images).all() and raw.test_labels is not None
            assert raw.test_labels.tolist() == [0, 0, 1, 1, 2, 2] and raw.classes == wanted.classes
    kinds.unpacked(tmp_path / "0", {f"tiny-imagenet-200/val/n0/{below}x.png": b""})
    with pytest.raises(UserError, match=r"val/n0: no class of wnids\.txt or train/ has that name"):
        read("tiny_imagenet", tmp_path / "0")


def test_what_tiny_imagenet_s_lists_leave_out_is_told(tmp_path: Path) -> None:
    files = tiny()
    root = kinds.unpacked(tmp_path, files) / "tiny-imagenet-200"
    (root / "wnids.txt").write_text("n00000010\nn00000020\nn00000020\n")
    lines = files["tiny-imagenet-200/val/val_annotations.txt"].decode().splitlines(keepends=True)
    (root / "val/val_annotations.txt").write_text("".join(lines[2:]))
    (root / "real").mkdir()
    (root / "train/n00000020").rename(root / "real/n00000020")
    (root / "train/n00000020").symlink_to(root / "real/n00000020")
    raw = read("tiny_imagenet", root)
    assert raw.train_labels.tolist() == [0] * 3 + [1] * 3 and raw.problems == [
        f"{root}: 1 folders of train/ that wnids.txt does not list were ignored: n00000030",
        f"{root}: 2 images of val/ that val_annotations.txt does not list were ignored: val/images/val_0.JPEG",
        "2 of Tiny-ImageNet's 200 classes",
    ]
    (root / "val/val_annotations.txt").write_text("".join([*lines[2:], "val_3.JPEG\tn00000020\n"]))
    with pytest.raises(UserError, match="lists an image with two classes"):
        read("tiny_imagenet", root)


def test_bad_files_of_tiny_imagenet(tmp_path: Path) -> None:
    files = {**tiny(), "tiny-imagenet-200/val/images/val_0.JPEG": b""}
    name = r"val/images/val_0\.JPEG is empty"
    for path in (kinds.unpacked(tmp_path / "a", files), kinds.zipped(tmp_path / "tiny.zip", files)):
        with pytest.raises(UserError, match=name):
            read("tiny_imagenet", path)
        raw = read("tiny_imagenet", path, on_bad_file="skip")
        assert raw.test_labels is not None and len(raw.test_labels) == 5 and "1 bad file was" in raw.problems[1]


def test_a_damaged_zip_of_tiny_imagenet_says_what_is_damaged(tmp_path: Path) -> None:
    path = kinds.zipped(tmp_path / "tiny.zip", tiny())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info.header_offset + 30 + len(info.filename) for info in archive.infolist()}
    for name, said in (("val/images/val_0.JPEG", "cannot be read"), ("wnids.txt", "is damaged")):
        start = members[f"tiny-imagenet-200/{name}"]
        path.write_bytes(whole[:start] + bytes([whole[start] ^ 255]) + whole[start + 1 :])
        with pytest.raises(UserError, match=rf"^[^\n]*tiny\.zip: {name} {said} [^\n]*$"):
            read("tiny_imagenet", path)


def test_a_file_of_a_zip_that_would_fill_the_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kinds.zipped(tmp_path / "tiny.zip", {**tiny(), "tiny-imagenet-200/words.txt": b" " * 100_000})
    monkeypatch.setattr(decoding, "MAX_BYTES", 50_000)
    with pytest.raises(UserError, match=r"tiny\.zip: words\.txt has 0\.0 GiB, too much for a list: download it again"):
        read("tiny_imagenet", path)
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    with pytest.raises(UserError, match=r"has 0\.0 GiB, too much for"):
        read("tiny_imagenet", path)


def test_other_layouts_are_not_taken_for_tiny_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not Tiny-ImageNet's layout"):
        read("tiny_imagenet", tmp_path)
    for change in ({"val/val_annotations.txt": b"val_0.JPEG\tn00000099"}, {"val/val_annotations.txt": b"nonsense"}):
        files = {**tiny(), **{f"tiny-imagenet-200/{name}": content for name, content in change.items()}}
        with pytest.raises(UserError, match=r"val_annotations\.txt: cannot use the line"):
            read("tiny_imagenet", kinds.unpacked(tmp_path / "a", files))
    with pytest.raises(UserError, match="fewer than two classes"):
        read("tiny_imagenet", kinds.unpacked(tmp_path / "b", tiny(1)))
    kinds.unpacked(tmp_path, {"x.zip": b"PK"})
    with pytest.raises(UserError, match="not a readable zip file"):
        read("tiny_imagenet", tmp_path / "x.zip")
