"""Tiny-ImageNet: colour images of 64×64 pixels in 200 classes; its labelled validation set serves as test set."""

import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import BadImage, Item, decode_all, from_file, remarks
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources.archives import DAMAGED
from iakd.data.sources.download import local
from iakd.errors import UserError

SIDE = 64
Labelled = list[tuple[str, int]]  # path of an image below tiny-imagenet-200/, and its class


class Tree(Protocol):
    """tiny-imagenet-200/ in a folder or a zip file."""

    where: str

    def names(self, folder: str) -> list[str]:
        """Files below a folder, sorted."""
        ...

    def text(self, name: str) -> str:
        """A text file, '' where there is none."""
        ...

    def item(self, name: str) -> Item:
        """An image."""
        ...


def read(settings: Dataset) -> SourceData:
    """The training images by class folder and the validation images by val_annotations.txt.

    Classes are those of wnids.txt, sorted, called by their first name in words.txt. Raises UserError where the
    layout is another, or a file is damaged (unless such are to be skipped).
    """
    tree = _open(local(settings))
    ids = sorted(tree.text("wnids.txt").split()) or sorted({name.split("/")[1] for name in tree.names("train")})
    if len(ids) < 2:
        raise UserError(f"{tree.where}: wnids.txt and train/ name fewer than two classes: not Tiny-ImageNet's layout")
    number = {wnid: position for position, wnid in enumerate(ids)}
    train: Labelled = [
        (name, number[name.split("/")[1]])
        for name in tree.names("train")
        if name.lower().endswith((".jpeg", ".jpg")) and name.split("/")[1] in number
    ]
    val: Labelled = []
    for line in tree.text("val/val_annotations.txt").splitlines():
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in number:
            raise UserError(f"{tree.where}/val/val_annotations.txt: cannot use the line {line[:60]!r}")
        val.append((f"val/images/{fields[0]}", number[fields[1]]))
    for part, files in (("train", train), ("val", val)):
        if not files:
            raise UserError(f"{tree.where}: has no images of {part}: not Tiny-ImageNet's layout")
    problems: list[str] = [] if len(ids) == 200 else [f"{len(ids)} of Tiny-ImageNet's 200 classes"]
    arrays = [_decode(tree, files, settings, problems) for files in (train, val)]
    return SourceData(*arrays[0], *arrays[1], called(ids, tree.text("words.txt")), problems)


def _decode(tree: Tree, files: Labelled, settings: Dataset, problems: list[str]) -> tuple[Images, Labels]:
    items: Iterator[Item] = (tree.item(name) for name, _ in files)
    decoded = decode_all(items, len(files), 3, (SIDE, SIDE), settings.on_bad_file, tree.where)
    problems += remarks(decoded, (SIDE, SIDE), tree.where)
    if not decoded.kept.any():
        raise UserError(f"{tree.where}: none of {len(files)} images can be read")
    return decoded.images, np.array([label for _, label in files], dtype=np.int64)[decoded.kept]


def called(ids: list[str], words: str) -> list[str]:
    """The first name of each WordNet id; the id behind it where two have the same, or alone where none is known."""
    known = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    names = [known.get(wnid, wnid).split(",")[0].strip() for wnid in ids]
    often = Counter(names)
    return [f"{name} ({wnid})" if often[name] > 1 else name for name, wnid in zip(names, ids, strict=True)]


def _open(path: Path) -> Tree:
    if path.is_dir():
        for root in (path, path / "tiny-imagenet-200"):
            if (root / "train").is_dir():
                return _Folder(root)
        raise UserError(f"dataset.path: {path} has no train/ folder: not Tiny-ImageNet's layout")
    try:
        return _Zip(path)
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"dataset.path: {path} is no readable zip file: get it anew, or unpack it") from None


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def names(self, folder: str) -> list[str]:
        files = (path for path in (self.root / folder).rglob("*") if not path.name.startswith(".") and path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def item(self, name: str) -> Item:
        return from_file(self.root / name)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.archive, self.where = zipfile.ZipFile(path), str(path)
        self.members = {name.removeprefix("tiny-imagenet-200/"): name for name in self.archive.namelist()}

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self.members if name.startswith(f"{folder}/") and not name.endswith("/"))

    def text(self, name: str) -> str:
        if name not in self.members:
            return ""
        try:
            return self.archive.read(self.members[name]).decode(errors="replace")
        except DAMAGED as error:
            raise UserError(f"{self.where}: {name} is damaged ({error}): get it anew") from None

    def item(self, name: str) -> Item:
        return Item(f"{self.where}: {name}", lambda: self._open(name))

    def _open(self, name: str) -> IO[bytes]:
        if name not in self.members:
            raise BadImage("is missing")
        return io.BytesIO(self.archive.read(self.members[name]))
