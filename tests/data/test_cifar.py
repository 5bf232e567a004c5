"""CIFAR in all its forms."""

import gzip
import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import kinds
import numpy as np
import pyarrow.parquet as pq
import pytest

from iakd.config import Dataset
from iakd.data import sources
from iakd.data.decoding import decode, from_bytes
from iakd.data.source_data import SourceData
from iakd.data.sources import archives, cifar
from iakd.data.store import PreparedData
from iakd.data.writer import write_store
from iakd.errors import UserError

FORMS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": lambda place, files: next(kinds.unpacked(place, files).iterdir()),
    "folder above": kinds.unpacked,
    "tar.gz": lambda place, files: kinds.tar(place / "x.tar.gz", files),
    "tar": lambda place, files: kinds.tar(place / "x.tar", files),
    "zip": lambda place, files: kinds.zipped(place / "x.zip", files),
    "folder with archive": lambda place, files: kinds.tar(place / "x.tar.gz", files).parent,
}


def read(source: str, path: Path, **settings: object) -> SourceData:
    return sources.read(Dataset.model_validate({"source": source, "path": str(path), **settings}))


def check(raw: SourceData, data: kinds.Set, classes: list[str]) -> None:
    assert (raw.train_images == data.train).all() and (raw.train_labels == data.train_labels).all()
    assert (raw.test_images == data.test).all() and (raw.test_labels == data.test_labels).all()
    assert raw.classes == classes
    assert raw.train_labels.dtype == np.int64 and raw.train_images.dtype == np.uint8


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("form", ["python", "binary"])
def test_every_form_gives_the_published_arrays(form: str, packed: str, tmp_path: Path) -> None:
    ten, hundred = kinds.cifar10(), kinds.cifar100()
    check(read("cifar10", FORMS[packed](tmp_path / "a", kinds.cifar10_files(ten, form))), ten, kinds.NAMES10)
    path = FORMS[packed](tmp_path / "b", kinds.cifar100_files(hundred, form))
    check(read("cifar100", path), hundred, kinds.names100("fine"))
    coarse = read("cifar100", path, labels="coarse")
    assert (coarse.train_labels == hundred.coarse_of[hundred.train_labels]).all()
    assert coarse.classes == kinds.names100("coarse") and len(coarse.classes) == 20


def test_parquet_gives_the_same_bytes_in_the_store(tmp_path: Path) -> None:
    hundred = kinds.cifar100()
    kinds.cifar_parquet(tmp_path / "p", hundred)
    binary = kinds.unpacked(tmp_path / "b", kinds.cifar100_files(hundred, "binary"))
    python = kinds.tar(tmp_path / "x.tar.gz", kinds.cifar100_files(hundred, "python"))
    digests = set()
    for path in (tmp_path / "p", binary, python):
        settings = Dataset(source="cifar100", path=str(path), val=0.5)
        write_store(tmp_path / "store", read("cifar100", path), settings)
        digests.add(PreparedData.open(tmp_path / "store").sha256)
    assert len(digests) == 1
    kinds.cifar_parquet(tmp_path / "ten", kinds.cifar10())
    check(read("cifar10", tmp_path / "ten"), kinds.cifar10(), kinds.NAMES10)
    coarse = read("cifar100", tmp_path / "p", labels="coarse")
    assert (coarse.test_labels == hundred.coarse_of[hundred.test_labels]).all()


def test_parquet_labels_mean_the_names_of_their_own_file(tmp_path: Path) -> None:
    data = kinds.cifar10()
    kinds.cifar_parquet(tmp_path, data)
    turned = kinds.NAMES10[::-1]
    for part, names, labels in (("train", kinds.NAMES10, data.train_labels), ("test", turned, 9 - data.test_labels)):
        images = data.train if part == "train" else data.test
        table = kinds.image_table(images, {"label": names}, label=labels.tolist())
        pq.write_table(table, tmp_path / f"data/{part}-00000-of-00001.parquet")
    check(read("cifar10", tmp_path), data, kinds.NAMES10)
    only_test = read("cifar10", tmp_path / "data/test-00000-of-00001.parquet", only_test=True)
    assert only_test.classes == turned and (only_test.train_labels == 9 - data.test_labels).all()


def test_links_in_an_archive_stand_for_its_files(tmp_path: Path) -> None:
    data = kinds.cifar10()
    files = kinds.cifar10_files(data, "binary")
    first = "cifar-10-batches-bin/data_batch_1.bin"
    for kind, target in ((tarfile.SYMTYPE, "../kept"), (tarfile.LNKTYPE, "kept")):
        path = tmp_path / "x.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            link = tarfile.TarInfo(first)
            link.type, link.linkname = kind, target
            if kind == tarfile.SYMTYPE:
                archive.addfile(link)  # before its target
            for name, content in files.items():
                member = tarfile.TarInfo("kept" if name == first else name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            if kind == tarfile.LNKTYPE:
                archive.addfile(link)
        check(read("cifar10", path), data, kinds.NAMES10)
    for outside in ("../../etc/passwd", "nowhere", "data_batch_1.bin"):
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            link = tarfile.TarInfo(first)
            link.type, link.linkname = tarfile.SYMTYPE, outside
            archive.addfile(link)
        with pytest.raises(UserError, match=r"^[^\n]*x\.tar\.gz is damaged or truncated \([^\n]*$"):
            read("cifar10", path)
    path = kinds.zipped(tmp_path / "x.zip", files)
    with zipfile.ZipFile(path, "w") as zipped:
        entry = zipfile.ZipInfo("test_batch.bin")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(entry, "elsewhere.bin")
    with pytest.raises(UserError, match=r"test_batch\.bin is a link"):
        read("cifar10", path)


def test_images_are_scaled_as_image_files_are(tmp_path: Path) -> None:
    ten = kinds.cifar10()
    path = kinds.unpacked(tmp_path / "ten", kinds.cifar10_files(ten, "python"))
    for target in ((12, 12), (16, 32), (40, 48)):
        raw = read("cifar10", path, size=target)
        for images, originals in ((raw.train_images, ten.train), (raw.test_images, ten.test)):
            assert isinstance(images, np.ndarray)
            for image, original in zip(images, originals, strict=True):
                assert (image == decode(from_bytes("x", kinds.png(original)), 3, target)[0]).all()
    check(read("cifar10", path, size=32), ten, kinds.NAMES10)


def test_some_of_the_classes(tmp_path: Path) -> None:
    hundred = kinds.cifar100()
    path = kinds.unpacked(tmp_path, kinds.cifar100_files(hundred, "python"))
    names = kinds.names100("fine")
    first = read("cifar100", path, classes=20)
    assert first.classes == names[:20]
    assert (first.train_images == hundred.train[hundred.train_labels < 20]).all()
    assert (first.test_labels == np.arange(20)).all()
    some = read("cifar100", path, classes=["worm", "apple", "bear"], size=8)
    assert some.classes == ["apple", "bear", "worm"] and some.train_images.shape == (6, 3, 8, 8)
    assert some.train_labels.tolist() == [0, 1, 2] * 2
    assert (some.test_images == read("cifar100", path, size=8).test_images[[0, 3, 99]]).all()
    for wanted, words in (
        (101, "101 classes asked for, but there are 100"),
        (["aple", "bear"], r"no class 'aple' \(did you"),
    ):
        with pytest.raises(UserError, match=f"^dataset.classes: {words}"):
            read("cifar100", path, classes=wanted)


def test_another_number_of_images_than_published_is_told(tmp_path: Path) -> None:
    raw = read("cifar10", kinds.unpacked(tmp_path, kinds.cifar10_files(kinds.cifar10(), "binary")))
    assert raw.problems == [
        "50 train images, but the publisher's files have 50,000",
        "10 test images, but the publisher's files have 10,000",
    ]


def test_the_test_files_alone_are_enough_where_only_they_are_asked_for(tmp_path: Path) -> None:
    data = kinds.cifar10()
    files = kinds.cifar10_files(data, "binary")
    kinds.unpacked(tmp_path, {name: content for name, content in files.items() if "data_batch" not in name})
    raw = read("cifar10", tmp_path, only_test=True)
    assert (raw.train_images == data.test).all() and raw.test_images is None
    assert "only the publisher's test files are used" in raw.problems
    with pytest.raises(UserError, match=r"data_batch_1\.bin is missing"):
        read("cifar10", tmp_path)


@pytest.mark.parametrize("form", ["python", "binary"])
def test_damaged_files_are_named_in_one_line(form: str, tmp_path: Path) -> None:
    files = kinds.cifar100_files(kinds.cifar100(), form)
    name = next(iter(files))
    for content in (files[name][:-7], b"", b"\x80\x02}q", pickle.dumps([1]), pickle.dumps({"data": np.zeros((2, 2))})):
        kinds.unpacked(tmp_path, {**files, name: content})
        with pytest.raises(UserError, match=rf"^[^\n]*{Path(name).name} is damaged[^\n]*$"):
            read("cifar100", tmp_path)
    with pytest.raises(UserError, match="has none of the files"):
        read("cifar100", kinds.unpacked(tmp_path / "other", {"a/b": b"x"}))
    with pytest.raises(UserError, match="does not exist"):
        read("cifar100", tmp_path / "nowhere")


def test_labels_out_of_range_are_noticed(tmp_path: Path) -> None:
    data = kinds.cifar10()
    data.test_labels = data.test_labels + 5
    with pytest.raises(UserError, match="labels from 5 to 14"):
        read("cifar10", kinds.unpacked(tmp_path, kinds.cifar10_files(data, "binary")))


@pytest.mark.parametrize("length", [0, 20, 2000, -3])
def test_a_truncated_archive_is_named(length: int, tmp_path: Path) -> None:
    for make, name in ((kinds.tar, "x.tar.gz"), (kinds.zipped, "x.zip"), (kinds.tar, "y.tar")):
        path = make(tmp_path / name, kinds.cifar10_files(kinds.cifar10(), "binary"))
        path.write_bytes(path.read_bytes()[: length or None if length else 0])
        if name == "y.tar" and length == -3:
            continue  # only padding is lost
        with pytest.raises(UserError, match=rf"^[^\n]*{name} is damaged or truncated[^\n]*$"):
            read("cifar10", path)


@pytest.mark.parametrize("name", ["../test_batch.bin", "/tmp/test_batch.bin", "a/../../b", "..\\b"])
def test_archives_that_reach_outside_are_refused(name: str, tmp_path: Path) -> None:
    files = {**kinds.cifar10_files(kinds.cifar10(), "binary"), name: b"x"}
    before = sorted(tmp_path.rglob("*"))
    for make, archive in ((kinds.tar, "x.tar.gz"), (kinds.zipped, "x.zip")):
        path = make(tmp_path / archive, files)
        with pytest.raises(UserError, match="outside the archive"):
            read("cifar10", path)
        path.unlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("make", ["tar", "zip", "gz"])
def test_an_archive_of_too_much_is_refused_before_it_fills_the_memory(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files together, each of which is small enough."""
    files = kinds.cifar10_files(kinds.cifar10(), "binary")
    monkeypatch.setattr(archives, "MAX_BYTES", sum(map(len, files.values())) - 1)
    if make == "gz":
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    path = (kinds.tar if make == "tar" else kinds.zipped)(tmp_path / f"x.{'tar' if make == 'tar' else 'zip'}", files)
    with pytest.raises(
        UserError, match=r"^[^\n]*x\.\w+: with \w[^\n]* it would have more than 0 GiB: it is not genuine"
    ):
        read("cifar10", path)
    monkeypatch.undo()
    read("cifar10", path)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something_is_refused(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = kinds.cifar10_files(kinds.cifar10(), "python")
    for name in list(files)[:1] + list(files)[-1:]:
        evil = pickle.dumps({"data": Evil()}, protocol=protocol)
        path = kinds.unpacked(tmp_path / "x", {**files, name: evil})
        with pytest.raises(UserError, match=r"^[^\n]*system, which is not data[^\n]*$"):
            read("cifar10", path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "call", ["builtins eval", "builtins getattr", "os system", "numpy load", "numpy._core.multiarray scalar"]
)
def test_the_unpickler_finds_arrays_and_builtins_only(call: str) -> None:
    module, name = call.split()
    with pytest.raises(ValueError, match="which is not data"):
        archives.loads(f"c{module}\n{name}\n.".encode())
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93."
    with pytest.raises(ValueError, match="which is not data"):
        archives.loads(dotted)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_from_every_protocol(protocol: int) -> None:
    value = {"data": kinds.pixels(2, 0), "labels": [1, 2], "f": np.asfortranarray(np.eye(3)), "b": b"\xff\0"}
    back = archives.loads(pickle.dumps(value, protocol=protocol))
    back = {key.decode() if isinstance(key, bytes) else key: item for key, item in back.items()}
    assert (back["data"] == value["data"]).all() and (back["f"] == np.eye(3)).all()
    assert back["labels"] == [1, 2] and back["b"] == b"\xff\0"


def test_the_old_modules_of_numpy_are_known() -> None:
    content = pickle.dumps(np.arange(4, dtype=np.uint8), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    assert archives.loads(content).tolist() == [0, 1, 2, 3]


def test_the_standard_class_names() -> None:
    assert len(set(cifar.CIFAR100.classes)) == 100 and len(set(cifar.CIFAR100_COARSE.classes)) == 20
    assert list(cifar.CLASSES) == kinds.NAMES10


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    for make, name in ((kinds.tar, "x.tar.gz"), (kinds.zipped, "x.zip")):
        path = make(tmp_path / name, kinds.cifar10_files(kinds.cifar10(), "binary"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or truncated"):
            read("cifar10", path)
