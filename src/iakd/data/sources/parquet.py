"""Parquet files in the layout of the Hugging Face Hub: a column of images and a column of labels."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import DecodedImages, EncodedImage, decode_all, from_bytes, image_problems
from iakd.data.source_data import Labels, SourceData
from iakd.data.sources.download import local
from iakd.errors import UserError

ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELS = ("label", "labels", "fine_label", "class", "target")  # tried in this order if no column is set
ROWS = 256  # rows read at a time


def split_files(path: Path) -> dict[str, list[Path]]:
    """Return the Parquet files by split (train, val, test), according to the prefix of their names or of their
    folder's.

    A file that names no split counts as training. Raises UserError if there are no files.
    """
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*.parquet") if not _hidden(p, path))
    if not found:
        raise UserError(f"{path}: has no *.parquet files")
    splits: dict[str, list[Path]] = {}
    for file in found:
        stem = file.stem.lower().split("-")[0].split("_")[0].split(".")[0]
        split = ALIASES.get(stem) or ("train" if file == path else ALIASES.get(file.parent.name.lower(), "train"))
        splits.setdefault(split, []).append(file)
    if "train" not in splits:
        raise UserError(f"{path}: has no files for training (train-….parquet)")
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


@dataclass(frozen=True)
class Table:
    """One or more Parquet files with the same two columns."""

    files: list[Path]
    image: str
    label: str
    names: list[str] | None  # of the classes, if the files have them

    def labels(self) -> list[Any]:
        """Return the label of each row, as stored."""
        found: list[Any] = []
        for file in self.files:
            with _error_as_user_error(file):
                found += _open(file).read([self.label])[self.label].to_pylist()
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


def open_table(files: list[Path], image: str | None, label: str | None) -> Table:
    """Find the columns. Raises UserError if they are missing, or not the same in all files."""
    schemas = [_open(file).schema_arrow for file in files]
    first = schemas[0]
    image = _choose(
        files[0], first.names, [n for n in first.names if _holds_images(first.field(n).type)], image, "image"
    )
    candidates = [name for name in LABELS if name in first.names][:1]
    candidates = candidates or [name for name in first.names if _holds_labels(first.field(name).type)]
    label = _choose(files[0], first.names, candidates, label, "label")
    for file, schema in zip(files, schemas, strict=True):
        for name in (image, label):
            if name not in schema.names or schema.field(name).type != first.field(name).type:
                raise UserError(f"{file}: column {name!r} differs from {files[0]}")
    if not _holds_images(first.field(image).type):
        raise UserError(f"{files[0]}: column {image!r} holds no images ({{bytes, path}}, or bytes)")
    if not _holds_labels(first.field(label).type):
        raise UserError(f"{files[0]}: column {label!r} holds no labels (integers, or text)")
    return Table(files, image, label, _names(first, label))


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


def _holds_labels(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _names(schema: Any, label: str) -> list[str] | None:
    """Return the class names from the metadata that the `datasets` library writes."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


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
    tables = {
        split: open_table(files, settings.image_column, settings.label_column)
        for split, files in split_files(path).items()
    }
    values = {split: table.labels() for split, table in tables.items()}
    order, classes = _classes(tables["train"], values["train"], problems)
    decoded: dict[str, DecodedImages] = {}
    labels: dict[str, Labels] = {}
    for split, table in tables.items():
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
        problems += image_problems(found, size, f"{path}: {split}")
    return SourceData.from_splits({name: split.images for name, split in decoded.items()}, labels, classes, problems)


def _classes(table: Table, values: list[Any], problems: list[str]) -> tuple[dict[Any, int], list[str]]:
    """Return the index of each label that occurs in training, in ascending order, and the names of the classes."""
    if None in values:
        raise UserError(f"{table.files[0]}: column {table.label!r} has rows without a label")
    occurring = sorted(set(values))
    if len(occurring) < 2:
        raise UserError(
            f"{table.files[0]}: column {table.label!r} has {len(occurring)} classes; at least two are needed"
        )
    if isinstance(occurring[0], int):
        if table.names is not None and (occurring[0] < 0 or occurring[-1] >= len(table.names)):
            raise UserError(f"{table.files[0]}: labels go up to {occurring[-1]} for {len(table.names)} class names")
        end = len(table.names) if table.names else occurring[-1] + 1
        gaps = set(range(end)) - set(occurring) if end < 10**6 else set()
        if gaps:
            problems.append(f"labels without training images: {_examples(gaps)}; the others were renumbered")
    names = [table.names[value] if table.names and isinstance(value, int) else str(value) for value in occurring]
    return {value: position for position, value in enumerate(occurring)}, names


def _examples(values: set[Any]) -> str:
    first = sorted(values, key=str)[:5]
    return ", ".join(map(str, first)) + (" …" if len(values) > 5 else "")
