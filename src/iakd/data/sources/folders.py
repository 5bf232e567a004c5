"""Data sets with a folder for each class, optionally below train/, val/ and test/."""

import csv
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset, GroupBy, did_you_mean
from iakd.data.decoding import DecodedImages, decode_all, from_file, image_problems
from iakd.data.layout import (
    IMAGE_SUFFIXES,
    contents,
    files_below,
    is_image,
    part_of,
    parts_among,
    same_name,
)
from iakd.data.scanning import scan
from iakd.data.source_data import Groups, Labels, SourceData
from iakd.data.sources.archives import is_archive
from iakd.data.sources.download import local
from iakd.data.sources.image_list import class_order, read_list, unlisted_images
from iakd.data.sources.tiny_imagenet import class_names
from iakd.errors import UserError
from iakd.files import plural, printable

NO_CLASSES = ("images", "imgs")  # names of folders of images of any class
AUTO_BYTES = 2 << 30  # of decoded images; more stay in their files


@dataclass
class FolderSplit:
    """The image files of one split, and the class of each; its group and its fold, if a list says them."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[str] | None = None
    folds: list[int] | None = None


def read_image_folder(settings: Dataset) -> SourceData:
    """Read the images below `dataset.path`, ordered by class and name, or those that `dataset.list_file` lists.

    Raises UserError for an unsuitable layout, for a class without images and, unless they are skipped, for an image
    file that cannot be read.
    """
    problems: list[str] = []
    if settings.list_file is not None:
        classes, splits = _listed_images(settings, problems)
        return decode_splits(splits, classes, settings, problems)
    folders = _split_folders(local(settings), problems)
    classes, splits = find_images(folders, settings, problems)
    return decode_splits(splits, classes, settings, problems)


def decode_splits(
    splits: dict[str, FolderSplit], classes: list[str], settings: Dataset, problems: list[str]
) -> SourceData:
    """Decode the images of all splits, or scan those that stay in their files. Adds to `problems`.

    Raises UserError like `read_image_folder`.
    """
    decoded: dict[str, DecodedImages[Any]] = {}
    labels: dict[str, Labels] = {}
    groups = {name: _groups(split, settings) for name, split in splits.items()} if settings.group_by else {}
    folds = None if splits["train"].folds is None else np.asarray(splits["train"].folds, dtype=np.int64)
    size = settings.height_width
    as_files = _stay_in_files(sum(len(split.files) for split in splits.values()), settings)
    for name, split in splits.items():
        options = (settings.on_bad_file, str(split.folder))
        if as_files and size:
            decoded[name] = scan(local(settings), split.files, settings.channels, size, settings.crop_pct, *options)
        else:
            encoded = (from_file(path) for path in split.files)
            decoded[name] = decode_all(encoded, len(split.files), settings.channels, size, *options, settings.crop_pct)
        if not decoded[name].kept.any():
            raise UserError(f"{split.folder}: none of its {len(split.files)} image files can be read")
        labels[name] = np.asarray(split.labels, dtype=np.int64)[decoded[name].kept]
        groups |= {name: groups[name][decoded[name].kept]} if groups else {}
        folds = folds[decoded[name].kept] if name == "train" and folds is not None else folds
        problems += image_problems(decoded[name], size, str(split.folder))
        if decoded[name].images.shape[1:] != decoded["train"].images.shape[1:]:
            raise UserError(f"{split.folder}: images differ in size from the training images: set dataset.size")
    images = {name: split.images for name, split in decoded.items()}
    source = SourceData.from_splits(images, labels, classes, problems, groups or None, folds)
    return _without_empty_classes(source, settings)


def _listed_images(settings: Dataset, problems: list[str]) -> tuple[list[str], dict[str, FolderSplit]]:
    """Return the classes (sorted) and the image files of each split, as `dataset.list_file` has them."""
    root = local(settings)
    if not root.is_dir():
        raise UserError(f"dataset.path: {root} is not a folder; unpack archives first")
    found = read_list(settings, root, problems)
    names = found.splits or ["train"] * len(found.files)
    if "train" not in names:
        raise UserError(f"{found.path}: has no images for training (split train)")
    classes = class_order([label for label, split in zip(found.labels, names, strict=True) if split == "train"])
    if len(classes) < 2:
        raise UserError(
            f"{found.path}: has {plural(len(classes), 'class', 'classes')} for training; at least two are needed"
        )
    number = {name: position for position, name in enumerate(classes)}
    unknown = [label for label in found.labels if label not in number]
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise UserError(f"{found.path}: the class {unknown[0]!r} has no images for training{hint}")
    order = sorted(range(len(found.files)), key=lambda row: (number[found.labels[row]], found.files[row]))
    splits: dict[str, FolderSplit] = {}
    for part in sorted(set(names), key=["train", "val", "test"].index):
        rows = [row for row in order if names[row] == part]
        splits[part] = FolderSplit(
            root,
            [found.files[row] for row in rows],
            [number[found.labels[row]] for row in rows],
            None if found.groups is None else [found.groups[row] for row in rows],
            None if found.folds is None else [found.folds[row] for row in rows],
        )
    try:
        unlisted = unlisted_images(found, root)
    except OSError as error:
        raise _unreadable(root, error) from None
    if unlisted:
        problems.append(
            f"{root}: {plural(len(unlisted), 'image')} not listed in {found.path.name}: {_examples(unlisted, root)}"
        )
    return classes, splits


def _groups(split: FolderSplit, settings: Dataset) -> Groups:
    """Return the group of each image. Raises UserError for an image without one."""
    by, root = settings.group_by, local(settings)
    assert by is not None
    if split.groups is not None:
        return np.array(split.groups)
    return np.array([_group_of(Path(os.path.relpath(file, root)), by) for file in split.files])


def _group_of(path: Path, by: GroupBy) -> str:
    if by.folder is not None:
        if len(path.parts) <= by.folder:
            raise UserError(
                f"dataset.group_by.folder: {printable(str(path))} is in {plural(len(path.parts) - 1, 'folder')}, not "
                f"{by.folder}"
            )
        return path.parts[-1 - by.folder]
    match = re.search(by.pattern or "", path.as_posix())
    if match is None:
        raise UserError(
            f"dataset.group_by.pattern: {by.pattern!r} is not found in {printable(path.as_posix())!r}, an image's path "
            "below dataset.path"
        )
    return "/".join(match.groups("")) or match[0]


def _stay_in_files(n: int, settings: Dataset) -> bool:
    """Return whether `n` images stay in their files."""
    if settings.storage == "auto" and settings.height_width:
        return n * settings.channels * int(np.prod(settings.height_width)) > AUTO_BYTES
    return settings.storage == "files"


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the other files in a folder. Raises UserError if it cannot be read."""
    try:
        return contents(folder)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: OSError) -> UserError:
    return UserError(f"dataset.path: {error.filename or folder} cannot be read ({error.strerror})")


def _split_folders(root: Path, problems: list[str]) -> dict[str, Path]:
    """Return the folders of the splits; only train if `root` itself has the folders of classes."""
    if not root.is_dir():
        raise UserError(f"dataset.path: {root} is not a folder; unpack archives first")
    root = _unwrapped(root, lambda name: part_of(name) is None)
    folders, others = _contents(root)
    if not folders:
        raise UserError(f"dataset.path: {root} has no folders; each class of images needs a folder of its own")
    parts = parts_among(folder.name for folder in folders)
    named = [folder for folder in folders if folder.name in parts]
    without_classes = [folder for folder in named if not _contents(folder)[0]]
    only_train = set(parts.values()) == {"train"} and len(folders) > 1
    if without_classes and only_train and not any(_contents(folder)[0] for folder in folders):
        problems.append(f"{root}: {without_classes[0].name}/ has no folders and counts as a class")
        return {"train": root}
    if without_classes:
        raise UserError(
            f"{without_classes[0]} has no folders; the name means a part of the data, in which each class needs a "
            "folder of its own: make these, move it away if its images have no labels, or rename it if it is a class"
        )
    splits: dict[str, Path] = {}
    for folder in named:
        split = parts[folder.name]
        if split in splits:
            raise UserError(
                f"dataset.path: {splits[split]} and {folder} both mean {split}: keep one of them, or rename it"
            )
        splits[split] = folder
    if not splits:
        return {"train": root}
    if "train" not in splits:
        raise UserError(f"dataset.path: {root} has {named[0].name}/ but no train/")
    skipped = [folder.name for folder in folders if folder not in named]
    if skipped:
        problems.append(f"{root}: folders next to train/ were ignored: {', '.join(skipped)}")
    beside = [file for file in others if is_image(file) or is_archive(file) or part_of(file.name)]
    if beside:
        problems.append(f"{root}: files next to train/ were not read: {_examples(beside, root)}")
    return {name: _unwrapped(splits[name], _is_wrapper) for name in ("train", "val", "test") if name in splits}


def _unwrapped(folder: Path, is_wrapper: Callable[[str], bool]) -> Path:
    """Return the folder with the folders that matter: `x/x/` or `x/images/`, where x has nothing else."""
    seen = {folder.resolve()}
    while True:
        inside, others = _contents(folder)
        if len(inside) != 1 or any(map(is_image, others)) or not is_wrapper(inside[0].name):
            return folder
        if not _contents(inside[0])[0] or inside[0].resolve() in seen:
            return folder
        folder = inside[0]
        seen.add(folder.resolve())


def _is_wrapper(name: str) -> bool:
    """Return whether the only folder in a part of the data, of this name, can be no class of its images."""
    return part_of(name) is not None or name.casefold() in NO_CLASSES


def find_images(
    folders: dict[str, Path], settings: Dataset, problems: list[str]
) -> tuple[list[str], dict[str, FolderSplit]]:
    """Return the classes (the folders' names, sorted) and the image files of each split."""
    classes = sorted({same_name(folder.name) for folder in _contents(folders["train"])[0]})
    if len(classes) < 2:
        raise UserError(f"{folders['train']} has {len(classes)} folder(s) of images; at least two are needed")
    for name in classes:
        if name != printable(name):
            raise UserError(
                f"{folders['train']}: the name of the folder {printable(name)} is no readable text: rename it"
            )
    number = {name: position for position, name in enumerate(classes)}
    splits = {}
    for name, root in folders.items():
        split = splits[name] = FolderSplit(root)
        of_classes, others = _contents(root)
        beside = [path for path in others if is_image(path)]
        skipped = [path for path in others if not is_image(path)]
        loops: list[Path] = []
        _check_class_folders(of_classes, settings)
        for folder in of_classes:
            label = number.get(same_name(folder.name))
            if label is None:
                hint = did_you_mean(folder.name, classes)
                raise UserError(f"{folder}: {folders['train']} has no class of that name{hint}")
            try:
                found = list(files_below(folder, loops))
            except OSError as error:
                raise _unreadable(folder, error) from None
            images = [path for path in found if is_image(path)]
            skipped += [path for path in found if not is_image(path)]
            split.files += images
            split.labels += [label] * len(images)
        if not split.files:
            raise UserError(f"{root} has no images ({', '.join(IMAGE_SUFFIXES)})")
        for paths, what in (
            (skipped, ("file is not an image, by its name,", "files are not images, by their names,", "read")),
            (beside, ("image is in no folder of a class,", "images are in no folder of a class,", "read")),
            (loops, ("link leads back to a folder above it,", "links lead back to a folder above them,", "followed")),
        ):
            if paths:
                one, several, done = what
                told = f"{plural(len(paths), one, several)} and {'was' if len(paths) == 1 else 'were'} not {done}"
                problems.append(f"{root}: {told}: {_examples(sorted(paths), root)}")
    used = set(splits["train"].labels)
    empty = [folder for position, folder in enumerate(classes) if position not in used]
    if empty and settings.on_bad_file == "refuse":
        hint = "add images, remove the folder, or set dataset.on_bad_file to skip"
        raise UserError(f"{folders['train'] / empty[0]} has no images: {hint}")
    return classes, splits


def _check_class_folders(folders: list[Path], settings: Dataset) -> None:
    """Raise UserError if the names of folders, or those of the folders in them, show that they are not classes."""
    without_images: list[tuple[Path, set[str]]] = []
    for folder in folders:
        if folder.name.casefold() in NO_CLASSES:
            raise UserError(f"{folder} is no class, by its name; each class of images needs a folder of its own")
        inside, others = _contents(folder)
        if inside and folder.name in parts_among([folder.name]):
            raise UserError(
                f"{folder} is a part of the data beside classes, by its name: put it next to {folder.parent.name}/, or "
                "rename it"
            )
        names = {entry.name for entry in inside}
        held_out = [name for name, part in parts_among(names).items() if part != "train"]
        if held_out:
            raise UserError(
                f"{folder / held_out[0]} is a part of the data within a class, by its name: make folders train/, val/ "
                "and test/, each with a folder for each class, or rename it"
            )
        if not any(map(is_image, others)):
            without_images.append((folder, names))
    shared = Counter(chain.from_iterable(names for _, names in without_images))
    common = sorted(name for name, n in shared.items() if n > 1)
    if len(common) > 1 and not isinstance(settings.classes, list) and settings.group_by is None:
        first, second = [folder for folder, names in without_images if common[0] in names][:2]
        raise UserError(
            f"{first} and {second.name}/ both have the folders {common[0]}/ and {common[1]}/: if those are the classes,"
            " name the parts of the data train/, val/ and test/; if not, list the classes in dataset.classes, or set "
            "dataset.group_by if these folders are groups"
        )


def _examples(paths: list[Path], root: Path) -> str:
    return ", ".join(str(path.relative_to(root)) for path in paths[:5]) + (" …" if len(paths) > 5 else "")


def _without_empty_classes(source: SourceData, settings: Dataset) -> SourceData:
    """Return a source without the classes that have no training images, and their images in other splits."""
    present = np.bincount(source.train_labels, minlength=len(source.classes)) > 0
    if present.all():
        return source
    if present.sum() < 2:
        raise UserError(f"{settings.path}: fewer than two classes have readable images for training")
    kept = [name for name, is_present in zip(source.classes, present.tolist(), strict=True) if is_present]
    empty = [name for name in source.classes if name not in kept]
    for name, labels in (("val", source.val_labels), ("test", source.test_labels)):
        if labels is not None and not present[labels].any():
            raise UserError(f"{settings.path}: the images of {name} all belong to classes without training images")
    source.problems.append(f"classes without training images were left out: {', '.join(empty)}")
    return source.with_classes(kept)


CLASSES = 1000
LAYOUTS = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # where train/ and val/ are, below dataset.path
SOLUTION = "LOC_val_solution.csv"
WNID = re.compile(r"n\d{8}")


def read_imagenet(settings: Dataset) -> SourceData:
    """Read the images of train/ and val/, ordered by class and name.

    The classes are the folders of train/, sorted, with their first name in LOC_synset_mapping.txt or words.txt. val/
    either has the same folders, or holds all images, with their classes in LOC_val_solution.csv. Raises UserError if
    the layout is different, or for a damaged file (unless such files are skipped).
    """
    root = local(settings)
    base = next((root / subfolders for subfolders in LAYOUTS if (root / subfolders / "train").is_dir()), None)
    if base is None or not (base / "val").is_dir():
        raise UserError(f"dataset.path: {root} has no folders train/ and val/: not ImageNet's layout")
    problems: list[str] = []
    by_class = any(entry.is_dir() and WNID.fullmatch(entry.name) for entry in (base / "val").iterdir())
    folders = {"train": base / "train"} | ({"test": base / "val"} if by_class else {})
    wnids, splits = find_images(folders, settings, problems)
    foreign = [name for name in wnids if not WNID.fullmatch(name)]
    if foreign:
        raise UserError(f"{base / 'train' / foreign[0]} is not named by a WordNet id such as n01440764")
    if not by_class:
        splits["test"] = _labelled_by_list(base / "val", root, wnids, problems)
    if len(wnids) != CLASSES:
        problems.append(f"{len(wnids)} of ImageNet's {CLASSES:,} classes")
    source = decode_splits(splits, wnids, settings, problems)
    words = re.sub("^(n[0-9]{8}) ", "\\1\t", _text(root, "LOC_synset_mapping.txt"), flags=re.MULTILINE)
    return dataclasses.replace(source, classes=class_names(source.classes, words or _text(root, "words.txt")))


def _labelled_by_list(val: Path, root: Path, wnids: list[str], problems: list[str]) -> FolderSplit:
    """Return the images of val/ with their classes in the publisher's list."""
    listed = list(csv.reader(_text(root, SOLUTION).splitlines()[1:]))
    if not listed:
        raise UserError(f"{val} has no folders of classes, and {root / SOLUTION}, which lists them, is missing")
    split = FolderSplit(val)
    for row in sorted(listed):
        wnid = row[1].split()[0] if len(row) > 1 and row[1].split() else ""
        if wnid not in wnids:
            raise UserError(f"{root / SOLUTION}: cannot use the line {','.join(row)[:60]!r}")
        split.files.append(val / f"{row[0]}.JPEG")
        split.labels.append(wnids.index(wnid))
    if len(set(split.files)) < len(split.files):
        raise UserError(f"{root / SOLUTION}: lists an image twice")
    unlisted = sorted(set(filter(is_image, _contents(val)[1])) - set(split.files))
    if unlisted:
        problems.append(f"{val}: {len(unlisted)} images that {SOLUTION} does not list were ignored: {unlisted[0].name}")
    return split


def _text(root: Path, name: str) -> str:
    """Return the content of a text file; '' if it is missing."""
    path = root / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
