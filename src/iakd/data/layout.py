"""How a user's folder is read: which of its files count, where links lead, and which names mean a part of the data."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

PARTS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "validating", "dev", "devel", "development"),
    "test": ("test", "tests", "testing", "tst", "eval", "evaluate", "evaluation", "holdout", "heldout"),
}
_PART_OF = {word: part for part, words in PARTS.items() for word in words}
_NEUTRAL = (  # words that may stand beside that of a part
    *("set", "sets", "data", "dataset", "split", "part", "image", "images", "img", "imgs", "photos", "pictures"),
    *("samples", "seg", "of", "x", "px", "parquet", "full", "final", "new", "my"),
)
_PART_WORD = re.compile(rf"(?:{'|'.join(_NEUTRAL)})?({'|'.join(_PART_OF)})(?:{'|'.join(_NEUTRAL)})?")


def same_name(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS writes `é` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def part_of(name: str) -> str | None:
    """Return the part (train, val or test) that a name such as `Training`, `test_set`, `seg_train` or
    `train-00000-of-00002` mentions; None if it mentions none, or several.
    """
    return _meaning(name)[0]


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """Return the part of each of the names, all from one folder, that means a part and not a class.

    `train`, `Testing` and `test_set` do by themselves. A name with more words, such as `cars_train`, does if the same
    words occur with another part, too: `train_station` alone may be a class.
    """
    meanings = {name: _meaning(name) for name in names}
    parts: dict[str, set[str]] = defaultdict(set)
    for part, others in meanings.values():
        parts[others] |= {part} if part else set()
    return {name: part for name, (part, others) in meanings.items() if part and (not others or len(parts[others]) > 1)}


def _meaning(name: str) -> tuple[str | None, str]:
    """Return the part that a name mentions, and its other words; digits and numbers count as spaces."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", same_name(name))  # trainA
    text = re.sub(r"\b(hold|held)\W+out", r"\1out", spaced.casefold())
    words = re.findall(r"[^\W\d_]+", text)
    found = [match[1] for word in words if (match := _PART_WORD.fullmatch(word))]
    parts = {_PART_OF[word] for word in found}
    others = " ".join(word for word in words if not _PART_WORD.fullmatch(word) and word not in _NEUTRAL)
    if parts == {"train", "val"}:  # both together, beside a test part
        return "train", others
    return (parts.pop() if len(parts) == 1 else None), others


def is_image(path: Path) -> bool:
    """Return whether the name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_system_file(name: str) -> bool:
    """Return whether the operating system, not the user, put it there."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def files_below(folder: Path, loops: list[Path] | None = None, unreadable: list[Path] | None = None) -> Iterator[Path]:
    """Yield the files at any depth, those of a folder (by name) before those of its subfolders; no system files.

    Links are followed. One that leads back to a folder above it is added to `loops` instead. Raises OSError for a
    folder that cannot be read, or adds it to `unreadable`.
    """
    above = {*folder.absolute().parents, *folder.resolve().parents}
    yield from _below(folder, [] if loops is None else loops, unreadable, frozenset(map(_identity, above)))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _below(
    folder: Path, loops: list[Path], unreadable: list[Path] | None, above: frozenset[tuple[int, int]]
) -> Iterator[Path]:
    identity = _identity(folder)
    if identity in above:
        loops.append(folder)
        return
    try:
        folders, others = contents(folder)
    except OSError:
        if unreadable is None:
            raise
        unreadable.append(folder)
        return
    yield from others
    for inside in folders:
        yield from _below(inside, loops, unreadable, above | {identity})


def contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders (links to folders included) and the other files in a folder, by name; no system files.

    Raises OSError for a folder that cannot be read.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    with os.scandir(folder) as entries:
        for name, is_folder in sorted((entry.name, _is_folder(entry)) for entry in entries):
            if not is_system_file(name):
                found[0 if is_folder else 1].append(folder / name)
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()  # the first forgives a circle of links
