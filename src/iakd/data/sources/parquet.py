"""Parquet files in the layout of the Hugging Face Hub: a column of images, a column of labels."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import DecodedImages, Item, decode_all, from_bytes, remarks
from iakd.data.source_data import Labels, SourceData
from iakd.data.sources.download import local
from iakd.errors import UserError

ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELS = ("label", "labels", "fine_label", "class", "target")  # in this order, where no column is named
PIECE = 256  # rows read at a time


def split_files(path: Path) -> dict[str, list[Path]]:
    """Parquet files by part (train, val, test): by the beginning of their names, or of the folder's.

    A file that names no part is taken for training. Raises UserError where there are no files.
    """
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*.parquet") if not _hidden(p, path))
    if not found:
        raise UserError(f"{path}: has no *.parquet files")
    parts: dict[str, list[Path]] = {}
    for file in found:
        stem = file.stem.lower().split("-")[0].split("_")[0].split(".")[0]
        part = ALIASES.get(stem) or ("train" if file == path else ALIASES.get(file.parent.name.lower(), "train"))
        parts.setdefault(part, []).append(file)
    if "train" not in parts:
        raise UserError(f"{path}: has no files for training (train-….parquet)")
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


@dataclass(frozen=True)
class Table:
    """One or more Parquet files with the same two columns."""

    files: list[Path]
    image: str
    label: str
    names: list[str] | None  # of the classes, where the files say them

    def labels(self) -> list[Any]:
        """The label of each row, as it stands there."""
        found: list[Any] = []
        for file in self.files:
            with _reading(file):
                found += _open(file).read([self.label])[self.label].to_pylist()
        return found

    def items(self) -> Iterator[Item]:
        """The image of each row, still encoded."""
        for file in self.files:
            row = 0
            with _reading(file):
                for batch in _open(file).iter_batches(PIECE, columns=[self.image]):
                    for value in batch.column(0).to_pylist():
                        content = value.get("bytes") if isinstance(value, dict) else value
                        yield from_bytes(f"{file}, row {row},", content)
                        row += 1


def open_table(files: list[Path], image: str | None, label: str | None) -> Table:
    """Find the columns. Raises UserError where they are not there, or not the same in all files."""
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
                raise UserError(f"{file}: column {name!r} is not as in {files[0]}")
    if not _holds_images(first.field(image).type):
        raise UserError(f"{files[0]}: column {image!r} holds no images ({{bytes, path}}, or bytes)")
    if not _holds_labels(first.field(label).type):
        raise UserError(f"{files[0]}: column {label!r} holds no labels (whole numbers, or text)")
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
    """Class names from the metadata that the `datasets` library writes."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _open(file: Path) -> Any:
    import pyarrow.parquet

    with _reading(file):
        return pyarrow.parquet.ParquetFile(file)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no readable Parquet file ({reason}): get it anew") from None


def read(settings: Dataset) -> SourceData:
    """The images of a Parquet file, or of a folder of them named by part.

    Classes are called as the files' metadata say, else by the labels themselves. Raises UserError where columns
    are missing and, unless they are to be skipped, for an image that cannot be read.
    """
    path = local(settings)
    problems: list[str] = []
    tables = {
        part: open_table(files, settings.image_column, settings.label_column)
        for part, files in split_files(path).items()
    }
    values = {part: table.labels() for part, table in tables.items()}
    order, classes = _classes(tables["train"], values["train"], problems)
    decoded: dict[str, DecodedImages] = {}
    labels: dict[str, Labels] = {}
    for part, table in tables.items():
        strange = set(values[part]) - set(order)
        if strange:
            raise UserError(f"{path}: {part} has labels that do not occur in train: {_shown(strange)}")
        size = settings.height_width
        found = decode_all(
            table.items(), len(values[part]), settings.channels, size, settings.on_bad_file, f"{path}: {part}"
        )
        if not found.kept.any():
            raise UserError(f"{path}: none of the {len(values[part])} images of {part} can be read")
        if decoded and found.images.shape[1:] != decoded["train"].images.shape[1:]:
            raise UserError(f"{path}: images of {part} are not of the size of those for training: set dataset.size")
        decoded[part] = found
        labels[part] = np.array([order[value] for value in values[part]], dtype=np.int64)[found.kept]
        problems += remarks(found, size, f"{path}: {part}")
    return SourceData.of_parts({name: part.images for name, part in decoded.items()}, labels, classes, problems)


def _classes(table: Table, values: list[Any], problems: list[str]) -> tuple[dict[Any, int], list[str]]:
    """Position of each label that occurs in training, ascending, and what the classes are called."""
    if None in values:
        raise UserError(f"{table.files[0]}: column {table.label!r} has rows without a label")
    occurring = sorted(set(values))
    if len(occurring) < 2:
        raise UserError(f"{table.files[0]}: column {table.label!r} has {len(occurring)} classes; there must be two")
    if isinstance(occurring[0], int):
        if table.names is not None and (occurring[0] < 0 or occurring[-1] >= len(table.names)):
            raise UserError(f"{table.files[0]}: labels run to {occurring[-1]} for {len(table.names)} class names")
        end = len(table.names) if table.names else occurring[-1] + 1
        gaps = set(range(end)) - set(occurring) if end < 10**6 else set()
        if gaps:
            problems.append(f"labels without images for training: {_shown(gaps)}; the others are numbered anew")
    names = [table.names[value] if table.names and isinstance(value, int) else str(value) for value in occurring]
    return {value: position for position, value in enumerate(occurring)}, names


def _shown(values: set[Any]) -> str:
    first = sorted(values, key=str)[:5]
    return ", ".join(map(str, first)) + (" …" if len(values) > 5 else "")
