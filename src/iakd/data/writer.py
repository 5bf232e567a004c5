"""Making the canonical store from what a source has read."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd import files
from iakd.config import SOURCES, Dataset
from iakd.data.source_data import ImageFiles, SourceData
from iakd.data.splits import Indices, Split, split
from iakd.data.statistics import constant_channels, duplicates, mean_std, missing_classes, pieces
from iakd.data.store import KINDS, MANIFEST, SPLITS, combined_sha256, file_name


def write_store(
    folder: Path, raw: SourceData, settings: Dataset, key: str | None = None, fingerprint: str | None = None
) -> Path:
    """Split `raw`; write {split}.images.npy (or {split}.files.npy), {split}.labels.npy and, last of all, manifest.json.

    `key`, the identity of the job with its source code, and `fingerprint`, of the files that were read, are noted
    in the manifest. Earlier data stay until the new are complete beside them; while files change places there is no
    manifest. Returns the manifest's path.
    Raises UserError where the data are too few for the split that is asked for.
    """
    parts = split(raw, settings)
    storage = "files" if isinstance(raw.train_images, ImageFiles) else "array"
    arrays = [file_name(name, kind) for name in SPLITS for kind in KINDS[storage]]
    others = {file_name(name, kind) for name in SPLITS for kinds in KINDS.values() for kind in kinds} - set(arrays)
    for name in [MANIFEST, *arrays, *others]:
        for leftover in folder.glob(f".{name}.*"):  # of a writer that was killed
            leftover.unlink()
    with contextlib.ExitStack() as stack:  # on leaving, files come into place in reverse: the manifest last
        new = {name: stack.enter_context(files.atomic_path(folder / name)) for name in [MANIFEST, *arrays]}
        hashes: dict[str, str] = {}
        for name, part in parts.items():
            images = part.images.index if isinstance(part.images, ImageFiles) else part.images
            for kind, array in zip(KINDS[storage], (images, part.labels), strict=True):
                file = file_name(name, kind)
                hashes[file] = _save(new[file], array, part.indices)
        about: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "key": key}
        about |= {"fingerprint": fingerprint} if fingerprint else {}
        files.write_json(new[MANIFEST], {**about, **_describe(raw, settings, parts, storage, hashes)})
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in others:  # of data that were stored in the other way
            (folder / name).unlink(missing_ok=True)
    return folder / MANIFEST


def _save(path: Path, array: NDArray[Any], indices: Indices) -> str:
    """Write `array[indices]` as .npy, some images at a time; returns the file's SHA-256."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (len(indices), *array.shape[1:]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces(array, indices):
            file.write(np.ascontiguousarray(piece).data)
    return files.sha256_file(path)


def _describe(
    raw: SourceData, settings: Dataset, parts: dict[str, Split], storage: str, hashes: dict[str, str]
) -> dict[str, Any]:
    """What the manifest says of the data; `hashes`: SHA-256 of each file."""
    splits: dict[str, Any] = {}
    for name, part in parts.items():
        own = {file_name(name, kind): hashes[file_name(name, kind)] for kind in KINDS[storage]}
        splits[name] = {
            "n": len(part.indices),
            "sha256": files.digest(own),
            "files": own,
            "per_class": part.per_class(len(raw.classes)),
            "from": part.origin,
            "indices": part.indices.tolist(),
        }
    mean, std = mean_std(parts["train"].images, parts["train"].indices)
    per_class = {name: splits[name]["per_class"] for name in SPLITS}
    _, channels, height, width = raw.train_images.shape
    return {
        "source": {
            "name": settings.source,
            "about": SOURCES[settings.source].summary,
            "train": len(raw.train_images),
            "test": None if raw.test_images is None else len(raw.test_images),
            **({} if raw.val_images is None else {"val": len(raw.val_images)}),
        },
        "storage": storage,
        "classes": raw.classes,
        "image": {"channels": channels, "height": height, "width": width},
        "mean": mean,
        "std": std,
        "problems": [
            *map(files.printable, raw.problems),  # they name files
            *missing_classes(per_class, raw.classes),
            *constant_channels(std),
            *duplicates(parts),
        ],
        "sha256": combined_sha256(splits),
        "splits": splits,
    }
