"""Images in a folder for each class, below train/, val/ and test/ or not."""

import csv
import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import DecodedImages, decode_all, from_file, remarks
from iakd.data.scanning import scan
from iakd.data.source_data import Labels, SourceData
from iakd.data.sources.download import local
from iakd.data.sources.parquet import ALIASES
from iakd.data.sources.tiny_imagenet import called
from iakd.errors import UserError
from iakd.files import printable

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"}

AUTO_BYTES = 2 << 30  # of decoded images; more stay in their files


@dataclass
class FolderSplit:
    """The image files of one part, and the class of each."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def read_image_folder(settings: Dataset) -> SourceData:
    """The images below `dataset.path`, in the order of their classes and names.

    Raises UserError for an odd layout, for a class without images and, unless they are to be skipped, for a
    file with the name of an image that cannot be read.
    """
    problems: list[str] = []
    folders = _parts(local(settings), problems)
    classes, parts = find(folders, settings, problems)
    return look_at(parts, classes, settings, problems)


def look_at(parts: dict[str, FolderSplit], classes: list[str], settings: Dataset, problems: list[str]) -> SourceData:
    """The images of the parts, decoded, or as files that were all looked at. Adds to `problems`.

    Raises as `read_image_folder`.
    """
    outcome: dict[str, DecodedImages[Any]] = {}
    labels: dict[str, Labels] = {}
    size = settings.height_width
    kept = _kept_as_files(sum(len(part.files) for part in parts.values()), settings)
    for name, part in parts.items():
        how = (settings.on_bad_file, str(part.folder))
        if kept and size:
            outcome[name] = scan(local(settings), part.files, settings.channels, size, settings.crop_pct, *how)
        else:
            items = (from_file(path) for path in part.files)
            outcome[name] = decode_all(items, len(part.files), settings.channels, size, *how, settings.crop_pct)
        if not outcome[name].kept.any():
            raise UserError(f"{part.folder}: none of its {len(part.files)} image files can be read")
        labels[name] = np.asarray(part.labels, dtype=np.int64)[outcome[name].kept]
        problems += remarks(outcome[name], size, str(part.folder))
        if outcome[name].images.shape[1:] != outcome["train"].images.shape[1:]:
            raise UserError(f"{part.folder}: images are not of the size of those for training: set dataset.size")
    classes = _without_lost_classes(classes, labels, outcome, settings, problems)
    return SourceData.of_parts({name: part.images for name, part in outcome.items()}, labels, classes, problems)


def _kept_as_files(n: int, settings: Dataset) -> bool:
    """Whether `n` images stay in their files."""
    if settings.storage == "auto" and settings.height_width:
        return n * settings.channels * int(np.prod(settings.height_width)) > AUTO_BYTES
    return settings.storage == "files"


def _visible(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"dataset.path: {folder} cannot be read ({error.strerror})") from None
    return [entry for entry in entries if not _passed_over(entry.name)]


def _passed_over(name: str) -> bool:
    """Whether an operating system put it there, not the user."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _parts(root: Path, problems: list[str]) -> dict[str, Path]:
    """Folders of the parts; only train where `root` has the folders of classes itself."""
    if not root.is_dir():
        raise UserError(f"dataset.path: {root} is no folder; unpack archives first")
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    if not folders:
        raise UserError(f"dataset.path: {root} has no folders; each class of images needs a folder of its own")
    named = [folder for folder in folders if folder.name.lower() in ALIASES]
    parts: dict[str, Path] = {}
    for folder in named:
        part = ALIASES[folder.name.lower()]
        if part in parts:
            raise UserError(f"dataset.path: {parts[part]} and {folder} both mean {part}: keep one of them")
        parts[part] = folder
    if not parts:
        return {"train": root}
    if "train" not in parts:
        raise UserError(f"dataset.path: {root} has {named[0].name}/ but no train/")
    others = [folder.name for folder in folders if folder not in named]
    if others:
        problems.append(f"{root}: folders beside train/ are not read: {', '.join(others)}")
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def find(folders: dict[str, Path], settings: Dataset, problems: list[str]) -> tuple[list[str], dict[str, FolderSplit]]:
    """Classes (the folders' names, sorted) and the image files of each part."""
    classes = [folder.name for folder in _visible(folders["train"]) if folder.is_dir()]
    if len(classes) < 2:
        raise UserError(f"{folders['train']} has {len(classes)} folder(s) of images; there must be two classes or more")
    for name in classes:
        if name != printable(name):
            raise UserError(f"{folders['train']}: the folder {printable(name)} has a name that is no UTF-8: rename it")
    parts = {}
    for name, root in folders.items():
        part = parts[name] = FolderSplit(root)
        others: list[Path] = []
        for folder in _visible(root):
            if not folder.is_dir():
                others.append(folder)
            elif folder.name not in classes:
                raise UserError(f"{folder}: {folders['train']} has no class of that name")
            else:
                found = list(_below(folder, others))
                part.files += found
                part.labels += [classes.index(folder.name)] * len(found)
        if not part.files:
            raise UserError(f"{root} has no images ({', '.join(sorted(SUFFIXES))})")
        if others:
            shown = ", ".join(str(path.relative_to(root)) for path in others[:5]) + (" …" if len(others) > 5 else "")
            problems.append(f"{root}: {len(others)} files are no images by name and were not read: {shown}")
    empty = [folder for position, folder in enumerate(classes) if position not in parts["train"].labels]
    if empty and settings.on_bad_file == "refuse":
        hint = "add images, remove the folder, or set dataset.on_bad_file to skip"
        raise UserError(f"{folders['train'] / empty[0]} has no images: {hint}")
    return classes, parts


def _below(folder: Path, others: list[Path]) -> Iterator[Path]:
    """Image files at any depth, by name; the rest goes to `others`. Links to folders are not followed."""
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not _passed_over(name))
        links = [name for name in inside if (Path(place) / name).is_symlink()]
        others += [Path(place) / name for name in links]
        for name in sorted(names):
            path = Path(place) / name
            if _passed_over(name):
                continue
            if path.suffix.lower() in SUFFIXES:
                yield path
            else:
                others.append(path)


def _without_lost_classes(
    classes: list[str],
    labels: dict[str, Labels],
    outcome: dict[str, DecodedImages[Any]],
    settings: Dataset,
    problems: list[str],
) -> list[str]:
    """The classes that training images are left of; the others' images go. Labels are renumbered in place."""
    there = np.bincount(labels["train"], minlength=len(classes)) > 0
    if there.all():
        return classes
    lost = [name for name, has in zip(classes, there.tolist(), strict=True) if not has]
    if there.sum() < 2:
        raise UserError(f"{settings.path}: fewer than two classes have readable images for training")
    problems.append(f"classes without images for training are left out: {', '.join(lost)}")
    number = np.cumsum(there) - 1
    for name in list(labels):
        keep = there[labels[name]]
        outcome[name].images = outcome[name].images[keep]
        labels[name] = number[labels[name][keep]].astype(np.int64)
        if not len(labels[name]):
            raise UserError(f"{settings.path}: the images of {name} all belong to classes without training images")
    return [name for name in classes if name not in lost]


CLASSES = 1000
INSIDE = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # where train/ and val/ are, below dataset.path
SOLUTION = "LOC_val_solution.csv"
WNID = re.compile(r"n\d{8}")


def read_imagenet(settings: Dataset) -> SourceData:
    """The images of train/ and val/, in the order of their classes and names.

    Classes are the folders of train/, sorted, called by their first name in LOC_synset_mapping.txt or words.txt.
    val/ has such folders, too, or all images, whose classes are then those of LOC_val_solution.csv. Raises UserError
    where the layout is another, or a file is damaged (unless such are to be skipped).
    """
    root = local(settings)
    place = next((root / inside for inside in INSIDE if (root / inside / "train").is_dir()), None)
    if place is None or not (place / "val").is_dir():
        raise UserError(f"dataset.path: {root} has no folders train/ and val/: not ImageNet's layout")
    problems: list[str] = []
    by_class = any(entry.is_dir() and WNID.fullmatch(entry.name) for entry in (place / "val").iterdir())
    folders = {"train": place / "train"} | ({"test": place / "val"} if by_class else {})
    wnids, parts = find(folders, settings, problems)
    strange = [name for name in wnids if not WNID.fullmatch(name)]
    if strange:
        raise UserError(f"{place / 'train' / strange[0]} is called by no WordNet id such as n01440764: not ImageNet's")
    if not by_class:
        parts["test"] = _flat(place / "val", root, wnids)
    if len(wnids) != CLASSES:
        problems.append(f"{len(wnids)} of ImageNet's {CLASSES:,} classes")
    raw = look_at(parts, wnids, settings, problems)
    words = re.sub("^(n[0-9]{8}) ", "\\1\t", _text(root, "LOC_synset_mapping.txt"), flags=re.MULTILINE)
    return dataclasses.replace(raw, classes=called(raw.classes, words or _text(root, "words.txt")))


def _flat(val: Path, root: Path, wnids: list[str]) -> FolderSplit:
    """The images of val/ by the publisher's list of their classes."""
    listed = list(csv.reader(_text(root, SOLUTION).splitlines()[1:]))
    if not listed:
        raise UserError(f"{val} has no folders of classes, and {root / SOLUTION}, which lists them, is not there")
    part = FolderSplit(val)
    for row in sorted(listed):
        wnid = row[1].split()[0] if len(row) > 1 and row[1].split() else ""
        if wnid not in wnids:
            raise UserError(f"{root / SOLUTION}: cannot use the line {','.join(row)[:60]!r}")
        part.files.append(val / f"{row[0]}.JPEG")
        part.labels.append(wnids.index(wnid))
    return part


def _text(root: Path, name: str) -> str:
    """A text file, '' where there is none."""
    path = root / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
