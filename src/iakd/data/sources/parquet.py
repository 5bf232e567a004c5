"""Images in Parquet files, in the layout of the Hugging Face Hub."""

from typing import Any

import numpy as np

from iakd.data.published import local
from iakd.data.raw import Labels, Raw
from iakd.data.reading import Decoded, decode_all, remarks
from iakd.data.tables import Table, open_table, split_files
from iakd.errors import UserError
from iakd.params import Dataset


def read(settings: Dataset) -> Raw:
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
    decoded: dict[str, Decoded] = {}
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
    return Raw.of_parts({name: part.images for name, part in decoded.items()}, labels, classes, problems)


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
