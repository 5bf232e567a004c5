"""Write a prepared data set from what a source has read."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd import files
from iakd.config import SOURCES, Dataset
from iakd.data.source_data import ImageFiles, SourceData
from iakd.data.splits import Indices, Split, split_source
from iakd.data.statistics import (
    alike,
    constant_channels,
    content_hashes,
    dominant_class,
    duplicates,
    groups_of,
    in_chunks,
    mean_std,
    missing_classes,
    near_duplicates,
    similar_names,
)
from iakd.data.store import KINDS, MANIFEST, SPLITS, combined_sha256, file_name


def write_store(
    folder: Path, source: SourceData, settings: Dataset, key: str | None = None, fingerprint: str | None = None
) -> Path:
    """Split `source`, then write {split}.images.npy (or {split}.files.npy), {split}.labels.npy and, last,
    manifest.json.

    `key`, the identity of the job and its source code, and `fingerprint`, of the files that were read, are recorded in
    the manifest. An earlier data set stays until the new one is complete beside it; while files are exchanged there is
    no manifest. Returns the manifest's path. Raises UserError if there are too few images for the requested split.
    """
    splits = split_source(source, settings)
    storage = "files" if isinstance(source.train_images, ImageFiles) else "array"
    arrays = [file_name(name, kind) for name in SPLITS for kind in KINDS[storage]]
    unused = {file_name(name, kind) for name in SPLITS for kinds in KINDS.values() for kind in kinds} - set(arrays)
    for name in [MANIFEST, *arrays, *unused]:
        for leftover in folder.glob(f".{name}.*"):  # of a writer that was killed
            leftover.unlink()
    with contextlib.ExitStack() as stack:  # on exit, files are moved into place in reverse order: the manifest last
        new = {name: stack.enter_context(files.atomic_path(folder / name)) for name in [MANIFEST, *arrays]}
        hashes: dict[str, str] = {}
        for name, split in splits.items():
            images = split.images.index if isinstance(split.images, ImageFiles) else split.images
            for kind, array in zip(KINDS[storage], (images, split.labels), strict=True):
                file = file_name(name, kind)
                hashes[file] = _save(new[file], array, split.indices)
        manifest: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "key": key}
        manifest |= {"fingerprint": fingerprint} if fingerprint else {}
        described = files.json_text(
            files.with_hash({**manifest, **_describe(source, settings, splits, storage, hashes)})
        )
        new[MANIFEST].write_bytes(described.encode())
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in unused:  # of data with the other kind of storage
            (folder / name).unlink(missing_ok=True)
    return folder / MANIFEST


def _save(path: Path, array: NDArray[Any], indices: Indices) -> str:
    """Write `array[indices]` as .npy, some images at a time. Returns the file's SHA-256."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": (len(indices), *array.shape[1:]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in in_chunks(array, indices):
            file.write(np.ascontiguousarray(chunk).data)
    return files.sha256_file(path)


def _describe(
    source: SourceData, settings: Dataset, splits: dict[str, Split], storage: str, hashes: dict[str, str]
) -> dict[str, Any]:
    """Return the manifest's description of the data. `hashes`: SHA-256 of each file."""
    described: dict[str, Any] = {}
    for name, split in splits.items():
        split_files = {file_name(name, kind): hashes[file_name(name, kind)] for kind in KINDS[storage]}
        described[name] = {
            "n": len(split.indices),
            "sha256": files.digest(split_files),
            "files": split_files,
            "per_class": split.per_class(len(source.classes)),
            "from": split.origin,
            "indices": split.indices.tolist(),
        }
    mean, std = mean_std(splits["train"].images, splits["train"].indices)
    per_class = {name: described[name]["per_class"] for name in SPLITS}
    exact = content_hashes(splits)
    groups, near = groups_of(splits), near_duplicates(splits, exact)
    _, channels, height, width = source.train_images.shape
    return {
        "source": {
            "name": settings.source,
            "about": SOURCES[settings.source].summary,
            "train": len(source.train_images),
            "test": None if source.test_images is None else len(source.test_images),
            **({} if source.val_images is None else {"val": len(source.val_images)}),
        },
        "storage": storage,
        "classes": source.classes,
        "image": {"channels": channels, "height": height, "width": width},
        "mean": mean,
        "std": std,
        **({"groups": groups} if groups else {}),
        "near_duplicates": near,
        "problems": [
            files.printable(problem)  # they contain names of files and classes
            for problem in (
                *source.problems,
                *similar_names(source.classes),
                *missing_classes(per_class, source.classes),
                *constant_channels(std),
                *dominant_class(per_class["train"], source.classes),
                *duplicates(splits, exact),
                *alike(near, splits),
            )
        ],
        "sha256": combined_sha256(described),
        "splits": described,
    }
