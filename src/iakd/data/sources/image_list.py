"""Lists of images: CSV or JSON files with a row for each image, as people keep beside a folder of images."""

import csv
import io
import json
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from iakd.config import Dataset
from iakd.data.layout import files_below, is_image, part_of, same_name
from iakd.data.sources.download import list_path
from iakd.errors import UserError
from iakd.files import printable

COLUMNS = {  # what a column holds, and names that it may have, in lower case
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "set", "partition", "part"),
    "fold": ("fold",),
}
DELIMITERS = ",;\t"
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


@dataclass
class ImageList:
    """The rows of a list: the file of each image and its class, and, where the list has them, its split, its fold and
    its group.
    """

    path: Path
    files: list[Path]
    labels: list[str]
    splits: list[str] | None
    folds: list[int] | None
    groups: list[str] | None


def read_list(settings: Dataset, root: Path, problems: list[str]) -> ImageList:
    """Read `dataset.list_file`. Adds to `problems`.

    Raises UserError, with the row, for what is missing or cannot be understood.
    """
    path = list_path(settings)
    assert path is not None
    rows = _rows(path)
    if not rows:
        raise UserError(f"{path}: lists no images")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    found = {kind: _column(columns, names) for kind, names in COLUMNS.items()}
    for kind in ("label", "split"):
        _check_alternatives(path, rows, columns, kind, found[kind])
    if found["path"] is None:
        raise UserError(f"{path}: has no column path (nor file, filename, …); its columns are {_listed(columns)}")
    by = settings.group_by.column if settings.group_by else None
    if by is not None and by not in columns:
        raise UserError(f"dataset.group_by.column: {path} has no column {by!r}; its columns are {_listed(columns)}")
    files = [_below(root, _text(path, number, row, found["path"]), path, number) for number, row in enumerate(rows, 1)]
    first: dict[Path, int] = {}
    for number, file in enumerate(files, 1):
        if first.setdefault(file, number) != number:
            raise UserError(f"{path}: rows {first[file]} and {number} list the same image, {printable(str(file))}")

    def values(column: str | None) -> list[str] | None:
        return None if column is None else [_text(path, number, row, column) for number, row in enumerate(rows, 1)]

    labels = values(found["label"])
    if labels is None:
        outside = [file for file in files if file.parent == _normal(root)]
        if outside:
            raise UserError(
                f"{path}: has no column label (nor class, …), and {printable(str(outside[0]))} is in no folder of a "
                "class"
            )
        labels = [file.parent.name for file in files]
        if unused := [name for name in columns if name not in (*found.values(), by)]:
            problems.append(
                f"{path}: has no column label (nor class, …), so the folders of the images are their classes; unused: "
                f"{_listed(unused)}"
            )
    _check_numbers(path, labels, "labels", "classes")
    groups = values(by)
    _check_numbers(path, groups or [], "groups", "groups")
    splits = values(found["split"])
    folds = values(found["fold"]) if settings.fold is not None else None
    if folds is not None and settings.folds is not None:
        raise UserError(f"dataset.folds: {path} has a column fold: leave out folds, or the column")
    if folds is None and settings.fold is not None and settings.folds is None:
        raise UserError(
            f"dataset.fold: {path} has no column fold: set dataset.folds, the number of folds, to draw them"
        )
    if found["fold"] and settings.fold is None:
        problems.append(f"{path}: its column fold is not used, since dataset.fold is not set")
    return ImageList(
        path,
        files,
        [same_name(label) for label in labels],
        None if splits is None else [_split(path, number, value) for number, value in enumerate(splits, 1)],
        None if folds is None else [_fold(path, number, value) for number, value in enumerate(folds, 1)],
        None if groups is None else [same_name(group) for group in groups],
    )


def _check_alternatives(
    path: Path, rows: list[dict[str, Any]], columns: list[str], kind: str, chosen: str | None
) -> None:
    """Raise UserError if two columns may be the label, and divide the images differently, as species and genus do.

    `kind` is what they may be, `chosen` the column that was taken for it.
    """
    for other in columns:
        if chosen is not None and other != chosen and other.casefold() in COLUMNS[kind]:
            both = {(str(row.get(chosen)), str(row.get(other))) for row in rows}
            if not len(both) == len({first for first, _ in both}) == len({second for _, second in both}):
                raise UserError(
                    f"{path}: the {kind} could be column {chosen!r} or {other!r}, which divide the images differently: "
                    "rename the one that is not meant"
                )


def _check_numbers(path: Path, names: list[str], kind: str, become: str) -> None:
    """Raise UserError for a number that is written in two ways: each would become a class, or a group."""
    first: dict[Decimal, str] = {}
    for name in dict.fromkeys(names):
        if NUMBER.fullmatch(name) and first.setdefault(Decimal(name), name) != name:
            raise UserError(
                f"{path}: the {kind} {first[Decimal(name)]} and {name} are the same number, but would be two {become}: "
                "write it in one way"
            )


def _below(root: Path, text: str, path: Path, number: int) -> Path:
    """Return the file that a row names, as a path that begins with `root`.

    Raises UserError for a file elsewhere, of which a change would not be noticed.
    """
    for whole in (os.path.abspath, os.path.realpath):  # by its name, or where links lead to
        file, folder = Path(whole(root / text)), Path(whole(root))
        if file.is_relative_to(folder):
            return _normal(root / file.relative_to(folder))
    raise UserError(f"{path}: row {number} lists {printable(text)}, which is not below dataset.path, {root}")


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def unlisted_images(found: ImageList, root: Path) -> list[Path]:
    """Return the images below `root` that are not in the list. Raises OSError for a folder that cannot be read."""
    listed = set(found.files)
    return [file for file in files_below(_normal(root)) if is_image(file) and file not in listed]


def class_order(labels: list[str]) -> list[str]:
    """Return the classes, ascending: by number if all are whole numbers."""
    names = set(labels)
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"dataset.list_file: {path} does not exist (looked for below {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        advice = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"dataset.list_file: {path} cannot be read ({error}){advice}") from None
    if path.suffix.lower() not in (".json", ".jsonl"):
        return _csv_rows(path, text)
    try:
        lines = path.suffix.lower() == ".jsonl"
        rows = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path}: expected a list of objects such as {{"path": "a.png", "label": "cat"}}')
    return rows


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [str(name).strip() for name in reader.fieldnames or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns are called {twice!r}: rename the one that is not meant")
        reader.fieldnames = names
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}: line {reader.line_num} has not as many fields as the first line, which names the columns"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path} is not a valid CSV file: line {reader.line_num}: {error}") from None
    return rows


def _column(columns: list[str], names: tuple[str, ...]) -> str | None:
    """Return the first of the columns with one of the names."""
    by_name = {column.casefold(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _text(path: Path, number: int, row: dict[str, Any], column: str) -> str:
    """Return a value as a text. Raises UserError, with the row, if there is none."""
    value = row.get(column)
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or text != printable(text):
        raise UserError(f"{path}: row {number} has no readable text or whole number in column {column!r}")
    return text


def _split(path: Path, number: int, value: str) -> str:
    part = part_of(value)
    if part is None:
        raise UserError(
            f"{path}: row {number} has the split {value!r}: write train, val or test; numbers of folds belong in a "
            "column fold"
        )
    return part


def _fold(path: Path, number: int, value: str) -> int:
    if not value.isdecimal():
        raise UserError(f"{path}: row {number} has the fold {value!r}, which is not a whole number")
    return int(value)


def _listed(columns: list[str]) -> str:
    return ", ".join(columns[:9]) + (" …" if len(columns) > 9 else "")
