"""Parquet files in the layout of the Hugging Face Hub: a column of images and a column of labels."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import DecodedImages, EncodedImage, decode_all, from_bytes, image_problems
from iakd.data.layout import files_below, part_of, same_name
from iakd.data.source_data import Groups, Labels, SourceData
from iakd.data.sources.download import local
from iakd.errors import UserError
from iakd.files import printable

SUFFIXES = (".parquet", ".parq", ".pq")
LABELS = ("label", "labels", "fine_label", "class", "target")  # tried in this order if no column is set
ROWS = 256  # rows read at a time


def parquet_files(path: Path) -> list[Path]:
    """Return the file `path`, or the Parquet files below the folder `path`, by their suffixes. Raises UserError if that
    cannot be read.
    """
    if path.is_file():
        return [path]
    try:
        return sorted(file for file in files_below(path) if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(f"dataset.path: {error.filename or path} cannot be read ({error.strerror})") from None


def split_files(path: Path) -> dict[str, list[Path]]:
    """Return the Parquet files by split (train, val, test), according to their names or those of their folders.

    If no file names a split, all are for training. Raises UserError if only some do, or if there are no files.
    """
    found = parquet_files(path)
    if not found:
        raise UserError(f"{path}: has no *.parquet files")
    named = {file: _split_of(file, path) for file in found}
    unnamed = [file for file, split in named.items() if split is None]
    if unnamed and len(unnamed) < len(found):
        known = next(file for file in found if named[file])
        raise UserError(
            f"{unnamed[0]}: its name says neither train, val nor test, but that of {known} does: rename it, or move it "
            "away"
        )
    splits: dict[str, list[Path]] = {}
    for file, split in named.items():
        splits.setdefault(split or "train", []).append(file)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _split_of(file: Path, root: Path) -> str | None:
    folders = [] if file == root else file.relative_to(root).parts[:-1]
    return next((split for name in (file.stem, *reversed(folders)) if (split := part_of(name))), None)


@dataclass(frozen=True)
class Table:
    """One or more Parquet files with the same two columns."""

    files: list[Path]
    image: str
    label: str
    names: list[list[str] | None]  # of the classes, for each file that has them

    def labels(self) -> list[int | str]:
        """Return the label of each row: its class name, or the number as stored if the file has no names.

        Raises UserError for rows without a label, and for numbers without a name.
        """
        found: list[int | str] = []
        for file, names in zip(self.files, self.names, strict=True):
            with _error_as_user_error(file):
                values = _open(file).read([self.label])[self.label].to_pylist()
            if None in values:
                raise UserError(f"{file}: column {self.label!r} has rows without a label")
            if not values or isinstance(values[0], str):
                found += map(same_name, values)
                continue
            lowest, highest = min(values), max(values)
            if lowest < 0 and (names is not None or set(values) != {-1, 1}):
                raise UserError(
                    f"{file}: column {self.label!r} has the label {lowest}; negative numbers usually mark images "
                    "without a label: remove these rows, or the file"
                )
            if names is not None and highest >= len(names):
                raise UserError(f"{file}: labels go up to {highest} for {len(names)} class names")
            found += values if names is None else (names[value] for value in values)
        return found

    def encoded(self) -> Iterator[EncodedImage]:
        """Yield the image of each row, still encoded."""
        for file in self.files:
            row = 0
            with _error_as_user_error(file):
                for batch in _open(file).iter_batches(ROWS, columns=[self.image]):
                    for value in batch.column(0).to_pylist():
                        content = value.get("bytes") if isinstance(value, dict) else value
                        yield from_bytes(f"{file}, row {row},", content)
                        row += 1

    def groups(self, column: str) -> list[str]:
        """Return the group of each row, as text. Raises UserError for a file without the column, or other values."""
        found: list[str] = []
        for file in self.files:
            with _error_as_user_error(file):
                opened = _open(file)
                if column not in (names := opened.schema_arrow.names):
                    raise UserError(
                        f"dataset.group_by.column: {file} has no column {column!r}; it has {', '.join(names)}"
                    )
                values = opened.read([column])[column].to_pylist()
            if not all(isinstance(value, str | int) for value in values):
                raise UserError(f"{file}: column {column!r} of dataset.group_by has more than texts and whole numbers")
            found += map(str, values)
        return found


def open_tables(files: dict[str, list[Path]], image: str | None, label: str | None) -> dict[str, Table]:
    """Find the columns in the files of each split. Raises UserError if they are missing, or not the same in all."""
    schemas = {file: _open(file).schema_arrow for of_split in files.values() for file in of_split}
    example, first = next(iter(schemas.items()))
    image = _choose(
        example, first.names, [n for n in first.names if _holds_images(first.field(n).type)], image, "image"
    )
    candidates = [name for name in LABELS if name in first.names][:1]
    candidates = candidates or [name for name in first.names if _holds_labels(first.field(name).type)]
    label = _choose(example, first.names, candidates, label, "label")
    if not _holds_images(first.field(image).type):
        raise UserError(f"{example}: column {image!r} holds no images ({{bytes, path}}, or bytes)")
    if not _holds_labels(first.field(label).type):
        raise UserError(f"{example}: column {label!r} holds no labels (integers, or text)")
    for file, schema in schemas.items():
        for name, holds in ((image, _holds_images), (label, _holds_labels)):
            if name not in schema.names or holds(schema.field(name).type) != holds(first.field(name).type):
                raise UserError(f"{file}: column {name!r} differs from {example}")
    return {
        split: Table(of_split, image, label, [_names(schemas[file], label) for file in of_split])
        for split, of_split in files.items()
    }


def _choose(file: Path, names: list[str], candidates: list[str], wanted: str | None, kind: str) -> str:
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"dataset.{kind}_column: {file} has no column {wanted!r}; it has {', '.join(names)}")
        return wanted
    if len(candidates) != 1:
        many = f"could be {' or '.join(candidates)}" if candidates else "is not found"
        raise UserError(
            f"{file}: the column of {kind}s {many} (columns: {', '.join(names)}): set dataset.{kind}_column"
        )
    return candidates[0]


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> str | None:
    """Return whether labels of this type are `numbers` or `text`; None for other types."""
    import pyarrow.types as types

    if types.is_dictionary(kind):  # a categorical column
        kind = kind.value_type
    if types.is_integer(kind):
        return "numbers"
    return "text" if types.is_string(kind) or types.is_large_string(kind) else None


def _names(schema: Any, label: str) -> list[str] | None:
    """Return the class names from the metadata that the `datasets` library writes, with a number where one is used
    twice.
    """
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list):
        return None
    names = [same_name(str(name)) for name in names]
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names)]


def _open(file: Path) -> Any:
    import pyarrow.parquet

    with _error_as_user_error(file):
        return pyarrow.parquet.ParquetFile(file)


@contextlib.contextmanager
def _error_as_user_error(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a readable Parquet file ({reason}): download it again") from None


def read(settings: Dataset) -> SourceData:
    """Read the images of a Parquet file, or of a folder of them named by split.

    The class names are those in the files' metadata, or else the labels themselves. Raises UserError if columns are
    missing and, unless they are skipped, for an image that cannot be read.
    """
    path = local(settings)
    problems: list[str] = []
    found_files = split_files(path)
    if path.is_file():
        if part_of(path.stem) in ("val", "test"):
            problems.append(f"{path}: the only file, and so used for training, whatever its name says")
        found_files = {"train": [path]}
    if "train" not in found_files:
        raise UserError(f"{path}: has no files for training (train-….parquet)")
    tables = open_tables(found_files, settings.image_column, settings.label_column)
    values = {split: table.labels() for split, table in tables.items()}
    known = list(dict.fromkeys(chain.from_iterable(names for names in tables["train"].names if names)))
    if known:
        values = {split: _with_names(tables[split], labels, known, problems) for split, labels in values.items()}
    order, classes = _classes(tables["train"], values["train"], known, problems)
    decoded: dict[str, DecodedImages] = {}
    labels: dict[str, Labels] = {}
    groups: dict[str, Groups] = {}
    for split, table in tables.items():
        if not values[split]:
            raise UserError(f"{table.files[0]}: has no rows")
        unknown = set(values[split]) - set(order)
        if unknown:
            raise UserError(f"{path}: {split} has labels that are not in train: {_examples(unknown)}")
        size = settings.height_width
        found = decode_all(
            table.encoded(), len(values[split]), settings.channels, size, settings.on_bad_file, f"{path}: {split}"
        )
        if not found.kept.any():
            raise UserError(f"{path}: none of the {len(values[split])} images of {split} can be read")
        if decoded and found.images.shape[1:] != decoded["train"].images.shape[1:]:
            raise UserError(f"{path}: images of {split} differ in size from the training images: set dataset.size")
        decoded[split] = found
        labels[split] = np.array([order[value] for value in values[split]], dtype=np.int64)[found.kept]
        if settings.group_by and settings.group_by.column:
            groups[split] = np.array(table.groups(settings.group_by.column))[found.kept]
        problems += image_problems(found, size, f"{path}: {split}")
    images = {name: split.images for name, split in decoded.items()}
    return SourceData.from_splits(images, labels, classes, problems, groups or None)


def _with_names(table: Table, labels: list[int | str], known: list[str], problems: list[str]) -> list[int | str]:
    """Return the labels with class names for those that are numbers, from files without names."""
    numbers = {label for label in labels if isinstance(label, int)}
    if not numbers:
        return labels
    without = table.files[table.names.index(None)]
    if min(numbers) < 0 or max(numbers) >= len(known):
        raise UserError(f"{without}: labels from {min(numbers)} to {max(numbers)} for {len(known)} class names")
    problems.append(f"{without}: has no class names; its numbers were taken for those of the training images")
    return [known[label] if isinstance(label, int) else label for label in labels]


def _classes(
    table: Table, labels: list[int | str], known: list[str], problems: list[str]
) -> tuple[dict[int | str, int], list[str]]:
    """Return the index of each label that occurs in training, and the names of the classes.

    They are in the order of the `known` names, or else ascending.
    """
    present: set[Any] = set(labels)
    occurring = [name for name in known if name in present] + sorted(present - set(known))
    if len(occurring) < 2:
        raise UserError(
            f"{table.files[0]}: column {table.label!r} has {len(occurring)} classes; at least two are needed"
        )
    unreadable = [name for name in map(str, occurring) if name != printable(name)]
    if unreadable:
        raise UserError(f"{table.files[0]}: the label {printable(unreadable[0])} is no readable text")
    unused: set[Any] = set(known) - present
    if isinstance(occurring[0], int) and occurring[-1] < 10**6:
        unused = set(range(occurring[-1] + 1)) - present
    if unused:
        problems.append(f"labels without training images: {_examples(unused)}; the others were renumbered")
    return {label: position for position, label in enumerate(occurring)}, list(map(str, occurring))


def _examples(values: set[Any]) -> str:
    first = sorted(values, key=str)[:5]
    return ", ".join(map(str, first)) + (" …" if len(values) > 5 else "")
