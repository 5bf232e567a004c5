"""Images that stay in their files: what `prepare` writes of them."""

import logging
import os
from pathlib import Path

import kinds
import numpy as np
import photos
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from iakd.config import Params
from iakd.data import scanning as scanning
from iakd.data.decoding import decode, from_bytes, from_file
from iakd.data.file_index import entry_at
from iakd.data.geometry import CropBox
from iakd.data.sources import folders
from iakd.data.store import PreparedData
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import plan_experiment
from iakd.stages import prepare


@pytest.mark.parametrize("classes", [["ant", "bee", "cat"], ["ant", "cat"]])
def test_files_and_array_say_the_same_of_the_same_images(classes: list[str], tmp_path: Path) -> None:
    root = photos.mixed(tmp_path / "images")
    files = photos.store(root, tmp_path / "files", size=16, classes=classes)
    array = photos.store(root, tmp_path / "array", size=16, storage="array", classes=classes)
    assert files.classes == classes
    for key in ("classes", "image", "mean", "std", "problems", "source"):
        assert files.manifest[key] == array.manifest[key], key
    assert (files.storage, array.storage) == ("files", "array")
    for split in ("train", "val", "test"):
        one, other = files.manifest["splits"][split], array.manifest["splits"][split]
        assert {k: one[k] for k in ("n", "per_class", "from", "indices")} == {
            k: other[k] for k in ("n", "per_class", "from", "indices")
        }
        assert (files.labels(split) == array.labels(split)).all()
        images = [
            decode(from_file(root / entry_at(files.files(split), i).path), 3, (16, 16))[0] for i in range(one["n"])
        ]
        assert (np.array(images) == array.images(split)).all()
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        "manifest.json",
        *(f"{split}.{kind}.npy" for split in ("test", "train", "val") for kind in ("files", "labels")),
    ]


def test_the_index_has_path_size_and_hash_of_each_file(tmp_path: Path) -> None:
    root = photos.same_size(tmp_path / "ümlaut and space", 5)
    (root / "bee/04.png").rename(root / "bee/é.png")
    found = photos.store(root, tmp_path / "store", val=1, test=1)
    entries = [
        entry_at(found.files(split), i) for split in ("train", "val", "test") for i in range(len(found.labels(split)))
    ]
    assert {entry.path for entry in entries} == {str(path.relative_to(root)) for path in root.rglob("*.png")}
    assert all(entry.size == (root / entry.path).stat().st_size for entry in entries)
    assert len({entry.hash for entry in entries}) == 15 == len(entries)


def test_auto_keeps_large_sets_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos.same_size(tmp_path / "images")
    pixels = 60 * 3 * 8 * 8
    for bound, size, storage in ((pixels, 8, "array"), (pixels - 1, 8, "files"), (pixels - 1, None, "array")):
        monkeypatch.setattr(folders, "AUTO_BYTES", bound)
        assert photos.store(root, tmp_path / "store", storage="auto", size=size).storage == storage
        names = {path.name for path in (tmp_path / "store").glob("*.npy")}
        assert len(names) == 6, "files of the other way are left"


def test_files_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage files needs `size`"):
        photos.settings(tmp_path, size=None)


def test_bad_files_are_refused_or_left_out_and_copies_told(tmp_path: Path) -> None:
    root = photos.mixed(tmp_path / "images")
    whole = (root / "bee/0.JPEG").read_bytes()
    clean = photos.store(root, tmp_path / "store")
    kinds.unpacked(root, {"bee/x.JPEG": whole[: len(whole) // 2], "cat/empty.jpg": b"", "cat/copy.JPEG": whole})
    (root / "ant/nowhere.png").symlink_to("absent")
    with pytest.raises(UserError, match=r"^[^\n]*ant/nowhere.png cannot be read \(No such file[^\n]*to skip$"):
        photos.store(root, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    found = photos.store(root, tmp_path / "skipped", on_bad_file="skip")
    bad = next(problem for problem in found.manifest["problems"] if "bad files" in problem)
    assert "3 bad files were left out" in bad and "x.JPEG cannot be read (" in bad
    assert "empty.jpg is empty" in bad
    assert "images that occur more than once, with different labels: 1" in found.manifest["problems"]
    assert sum(len(found.labels(split)) for split in ("train", "val", "test")) == 25
    assert found.sha256 != clean.sha256


def test_a_second_prepare_does_nothing_and_a_killed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos.same_size(tmp_path / "images")
    networks = {"teachers": [{"arch": "resnet8"}], "students": [{"arch": "resnet8"}]}
    dataset = photos.settings(Path("images"), name="mine").model_dump()
    experiment = plan_experiment(Params.model_validate({**networks, "dataset": dataset, "methods": {"kd": {}}}))
    folder = Path("results/mine/data")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "make_index", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(experiment)
    assert not folder.exists()
    prepare.run(experiment)
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    prepare.run(experiment)
    assert {path.stat().st_mtime_ns for path in folder.iterdir()} == {10**18}
    Path("images/ant/00.png").unlink()
    prepare.run(experiment)
    assert sum(len(PreparedData.open(folder).labels(split)) for split in ("train", "val", "test")) == 59
    Path("images").rename("elsewhere")
    with pytest.raises(UserError, match=r"^dataset\.path: images does not exist; it holds the images of .*data$"):
        PreparedData.open(folder)
    with pytest.raises(UserError, match=r"dataset\.path: images does not exist"):
        prepare.run(experiment)


def test_an_index_that_was_altered_is_refused(tmp_path: Path) -> None:
    found = photos.store(photos.same_size(tmp_path / "images"), tmp_path / "store")
    path = found.folder / "train.files.npy"
    path.write_bytes(path.read_bytes().replace(b"ant/0", b"ant/1", 1))
    with pytest.raises(UserError, match="altered"):
        PreparedData.open(found.folder)
    np.save(path, np.zeros(36))
    with pytest.raises(UserError, match="is damaged"):
        PreparedData.open(found.folder, check=False)


def test_a_worker_that_dies_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "decode", lambda *arguments: os._exit(9))
    with pytest.raises(RunFailed, match=r"^[^\n]*images: a process that decodes images died[^\n]*$"):
        photos.store(photos.same_size(tmp_path / "images"), tmp_path / "store")


def test_long_looks_show_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scanning, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        photos.store(photos.same_size(tmp_path / "images"), tmp_path / "store")
    assert "images: 60 of 60 images scanned" in caplog.text


@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_at_less_than_its_size(monkeypatch: pytest.MonkeyPatch, turned: bool) -> None:
    picture = photos.photo(480, 640, 1)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    content = photos.encoded(picture, "JPEG", quality=95, exif=exif)
    upright = picture.rotate(-90, expand=True) if turned else picture
    decoded_at = []
    real = JpegImageFile.draft

    def draft(self: JpegImageFile, mode: str, size: tuple[int, int]) -> object:
        result = real(self, mode, size)
        decoded_at.append(self.size)
        return result

    monkeypatch.setattr(JpegImageFile, "draft", draft)
    for crop, box, size in (
        (None, CropBox(80, 0, 560, 480) if not turned else CropBox(0, 80, 480, 560), (80, 60)),
        (lambda height, width: CropBox(20, 30, 120, 130), CropBox(20, 30, 120, 130), (320, 240)),
    ):
        image, original = decode(from_bytes("x", content), 3, (32, 32), crop)
        assert original == (upright.height, upright.width)
        assert decoded_at.pop() == size and not decoded_at
        expected = np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR, box), dtype=int)
        assert np.abs(image.astype(int) - expected.transpose(2, 0, 1)).mean() < 3
    decode(from_bytes("x", content), 3, (300, 300))
    assert not decoded_at, "there was nothing to spare"
