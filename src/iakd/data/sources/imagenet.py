"""ImageNet (ILSVRC 2012): photos in 1,000 classes; its published validation set serves as test set."""

import csv
import dataclasses
import re
from pathlib import Path

from iakd.data.published import local
from iakd.data.raw import Raw
from iakd.data.sources.image_folder import Part, find, look_at
from iakd.data.sources.tiny_imagenet import called
from iakd.errors import UserError
from iakd.params import Dataset

CLASSES = 1000
INSIDE = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # where train/ and val/ are, below dataset.path
SOLUTION = "LOC_val_solution.csv"
WNID = re.compile(r"n\d{8}")


def read(settings: Dataset) -> Raw:
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


def _flat(val: Path, root: Path, wnids: list[str]) -> Part:
    """The images of val/ by the publisher's list of their classes."""
    listed = list(csv.reader(_text(root, SOLUTION).splitlines()[1:]))
    if not listed:
        raise UserError(f"{val} has no folders of classes, and {root / SOLUTION}, which lists them, is not there")
    part = Part(val)
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
