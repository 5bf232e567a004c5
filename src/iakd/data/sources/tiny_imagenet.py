"""Tiny-ImageNet: colour images of 64×64 pixels in 200 classes; its labelled validation set serves as test set."""

import io
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import BadImage, EncodedImage, check_length, decode_all, from_file, image_problems
from iakd.data.layout import files_below, is_image, is_system_file
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources.archives import DAMAGED
from iakd.data.sources.download import local
from iakd.errors import UserError

SIDE = 64
LabelledPaths = list[tuple[str, int]]  # path of an image below tiny-imagenet-200/, and its class


class TinyImageNetFiles(Protocol):
    """The files of tiny-imagenet-200/, in a folder or a zip file."""

    location: str

    def names(self, folder: str) -> list[str]:
        """Return the files below a folder, sorted."""
        ...

    def text(self, name: str) -> str:
        """Return the content of a text file; '' if it is missing."""
        ...

    def image(self, name: str) -> EncodedImage:
        """Return an image."""
        ...


def read(settings: Dataset) -> SourceData:
    """Read the training images by class folder, and the validation images as listed in val_annotations.txt, or else by
    class folder.

    The classes are those of wnids.txt, sorted, with their first name in words.txt. Raises UserError if the layout is
    different, or for a damaged file (unless such files are skipped).
    """
    tree = _open(local(settings))
    problems: list[str] = []
    in_train = _by_class(tree, "train")
    ids = sorted(set(tree.text("wnids.txt").split())) or sorted(in_train)
    if len(ids) < 2:
        raise UserError(f"{tree.location}: wnids.txt and train/ name fewer than two classes: not Tiny-ImageNet")
    number = {wnid: position for position, wnid in enumerate(ids)}
    unknown = sorted(set(in_train) - set(ids))
    if unknown:
        what = "folders of train/ that wnids.txt does not list were ignored"
        problems.append(f"{tree.location}: {len(unknown)} {what}: {unknown[0]}")
    train = [(name, number[wnid]) for wnid, names in in_train.items() if wnid in number for name in names]
    val = _validation(tree, number, problems)
    for split, files in (("train", train), ("val", val)):
        if not files:
            raise UserError(f"{tree.location}: has no images of {split}: not Tiny-ImageNet's layout")
    if len(ids) != 200:
        problems.append(f"{len(ids)} of Tiny-ImageNet's 200 classes")
    arrays = [_decode(tree, files, settings, problems) for files in (train, val)]
    return SourceData(*arrays[0], *arrays[1], class_names(ids, tree.text("words.txt")), problems)


def _by_class(tree: TinyImageNetFiles, part: str) -> dict[str, list[str]]:
    """Return the images of a part of the data by the folder of a class that they are in, both sorted."""
    found: dict[str, list[str]] = {}
    for name in tree.names(part):
        folders = name.split("/")[1:-1]
        if folders and is_image(Path(name)):
            found.setdefault(folders[0], []).append(name)
    return found


def _validation(tree: TinyImageNetFiles, number: dict[str, int], problems: list[str]) -> LabelledPaths:
    """Return the validation images, of which many copies of the data set have sorted those into class folders."""
    by_folder = _by_class(tree, "val")
    listed = by_folder.pop("images", [])
    lines = tree.text("val/val_annotations.txt").splitlines()
    if by_folder and not (listed and lines):
        unknown = sorted(set(by_folder) - set(number))
        if unknown:
            raise UserError(f"{tree.location}/val/{unknown[0]}: no class of wnids.txt or train/ has that name")
        return [(name, number[wnid]) for wnid, names in by_folder.items() for name in names]
    found: LabelledPaths = []
    for line in lines:
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in number:
            raise UserError(f"{tree.location}/val/val_annotations.txt: cannot use the line {line[:60]!r}")
        found.append((f"val/images/{fields[0]}", number[fields[1]]))
    if len(dict(found)) < len(set(found)):
        raise UserError(f"{tree.location}/val/val_annotations.txt: lists an image with two classes")
    if lines and (unlisted := set(listed) - {name for name, _ in found}):
        what = "images of val/ that val_annotations.txt does not list were ignored"
        problems.append(f"{tree.location}: {len(unlisted)} {what}: {min(unlisted)}")
    return found


def _decode(
    tree: TinyImageNetFiles, files: LabelledPaths, settings: Dataset, problems: list[str]
) -> tuple[Images, Labels]:
    encoded: Iterator[EncodedImage] = (tree.image(name) for name, _ in files)
    decoded = decode_all(encoded, len(files), 3, (SIDE, SIDE), settings.on_bad_file, tree.location)
    problems += image_problems(decoded, (SIDE, SIDE), tree.location)
    if not decoded.kept.any():
        raise UserError(f"{tree.location}: none of {len(files)} images can be read")
    return decoded.images, np.array([label for _, label in files], dtype=np.int64)[decoded.kept]


def class_names(ids: list[str], words: str) -> list[str]:
    """Return the first name of each WordNet id, followed by the id if the name is not unique; the id alone if it has no
    name.
    """
    known = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    names = [known.get(wnid, wnid).split(",")[0].strip() for wnid in ids]
    counts = Counter(names)
    return [f"{name} ({wnid})" if counts[name] > 1 else name for name, wnid in zip(names, ids, strict=True)]


def _open(path: Path) -> TinyImageNetFiles:
    if path.is_dir():
        for root in (path, path / "tiny-imagenet-200"):
            if (root / "train").is_dir():
                return _Folder(root)
        raise UserError(f"dataset.path: {path} has no train/ folder: not Tiny-ImageNet's layout")
    try:
        return _Zip(path)
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"dataset.path: {path} is not a readable zip file: download it again, or unpack it") from None


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root, self.location = root, str(root)

    def names(self, folder: str) -> list[str]:
        if not (self.root / folder).is_dir():
            return []
        try:
            return sorted(path.relative_to(self.root).as_posix() for path in files_below(self.root / folder))
        except OSError as error:
            raise UserError(f"dataset.path: {error.filename} cannot be read ({error.strerror})") from None

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def image(self, name: str) -> EncodedImage:
        return from_file(self.root / name)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.archive, self.location = zipfile.ZipFile(path), str(path)
        infos = self.archive.infolist()
        self.members = {info.filename.removeprefix("tiny-imagenet-200/"): info.filename for info in infos}
        links = [info.filename for info in infos if stat.S_ISLNK(info.external_attr >> 16)]
        if links:
            raise UserError(f"{path}: {links[0]} is a link: unpack the archive and set dataset.path to the folder")
        if len(self.members) < len(infos):
            raise UserError(f"{path}: has two files of one name: it is not genuine, download it again")

    def names(self, folder: str) -> list[str]:
        inside = (name for name in self.members if name.startswith(f"{folder}/") and not name.endswith("/"))
        return sorted(name for name in inside if not any(map(is_system_file, name.split("/"))))

    def text(self, name: str) -> str:
        if name not in self.members:
            return ""
        try:
            check_length(self.archive.getinfo(self.members[name]).file_size, "a list")
            return self.archive.read(self.members[name]).decode(errors="replace")
        except BadImage as error:
            raise UserError(f"{self.location}: {name} {error}: download it again") from None
        except DAMAGED as error:
            raise UserError(f"{self.location}: {name} is damaged ({error}): download it again") from None

    def image(self, name: str) -> EncodedImage:
        return EncodedImage(f"{self.location}: {name}", lambda: self._open(name))

    def _open(self, name: str) -> IO[bytes]:
        if name not in self.members:
            raise BadImage("is missing")
        check_length(self.archive.getinfo(self.members[name]).file_size)
        return io.BytesIO(self.archive.read(self.members[name]))
