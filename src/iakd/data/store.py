"""The canonical store: a data set as memory-mapped uint8 arrays, and a manifest that vouches for them."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd import files
from iakd.data import sources
from iakd.data.raw import Images, Labels, Raw
from iakd.data.splits import Indices, Part, split
from iakd.data.statistics import constant_channels, duplicates, mean_std, missing_classes, pieces
from iakd.errors import UserError
from iakd.params import Dataset

SPLITS = ("train", "val", "test")
KINDS = ("images", "labels")
MANIFEST = "manifest.json"
AGAIN = "run `iakd prepare` again"


def write(folder: Path, raw: Raw, settings: Dataset, key: str | None = None, fingerprint: str | None = None) -> Path:
    """Split `raw`; write {split}.images.npy, {split}.labels.npy and, last of all, manifest.json.

    `key`, the identity of the job with its source code, and `fingerprint`, of the files that were read, are noted
    in the manifest. Earlier data stay until the
    new are complete beside them; while files change places there is no manifest. Returns the manifest's path.
    Raises UserError where the data are too few for the split that is asked for.
    """
    parts = split(raw, settings)
    arrays = [_file(name, kind) for name in SPLITS for kind in KINDS]
    for name in [MANIFEST, *arrays]:
        for leftover in folder.glob(f".{name}.*"):  # of a writer that was killed
            leftover.unlink()
    with contextlib.ExitStack() as stack:  # on leaving, files come into place in reverse: the manifest last
        new = {name: stack.enter_context(files.atomic_path(folder / name)) for name in [MANIFEST, *arrays]}
        hashes: dict[str, str] = {}
        for name, part in parts.items():
            for kind in KINDS:
                file = _file(name, kind)
                hashes[file] = _save(new[file], getattr(part, kind), part.indices)
        about: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "key": key}
        about |= {"fingerprint": fingerprint} if fingerprint else {}
        files.write_json(new[MANIFEST], {**about, **_describe(raw, settings, parts, hashes)})
        (folder / MANIFEST).unlink(missing_ok=True)
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


def _describe(raw: Raw, settings: Dataset, parts: dict[str, Part], hashes: dict[str, str]) -> dict[str, Any]:
    """What the manifest says of the data; `hashes`: SHA-256 of each file."""
    splits: dict[str, Any] = {}
    for name, part in parts.items():
        own = {_file(name, kind): hashes[_file(name, kind)] for kind in KINDS}
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
            "about": sources.describe(settings.source),
            "train": len(raw.train_images),
            "test": None if raw.test_images is None else len(raw.test_images),
            **({} if raw.val_images is None else {"val": len(raw.val_images)}),
        },
        "classes": raw.classes,
        "image": {"channels": channels, "height": height, "width": width},
        "mean": mean,
        "std": std,
        "problems": [
            *raw.problems,
            *missing_classes(per_class, raw.classes),
            *constant_channels(std),
            *duplicates(parts),
        ],
        "sha256": _digest(splits),
        "splits": splits,
    }


def _file(split: str, kind: str) -> str:
    return f"{split}.{kind}.npy"


def _digest(splits: dict[str, Any]) -> str:
    """One hash for all images and labels of a data set."""
    return files.digest({name: splits[name]["sha256"] for name in SPLITS})


@dataclasses.dataclass(frozen=True)
class Store:
    """A prepared data set. `open` it."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, check: bool = True, settings: dict[str, Any] | None = None) -> "Store":
        """The data set in `folder`: the sizes of its files are checked, with `check` their hashes too.

        `settings`, where given, are those that it must have been prepared with. Raises UserError for whatever
        is missing, damaged or of other settings.
        """
        path = folder / MANIFEST
        manifest = files.read_json(path, "run `iakd prepare`")
        store = cls(folder, manifest)
        try:
            whole = store._whole()
        except (KeyError, TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{path} is damaged (entries are missing or contradict each other): {AGAIN}")
        if settings is not None and manifest["settings"] != settings:
            raise UserError(f"{folder} was prepared with other settings of `dataset`: {AGAIN}")
        for name in SPLITS:
            store.images(name)
            store.labels(name)
            for file, sha256 in manifest["splits"][name]["files"].items():
                if check and files.sha256_file(folder / file) != sha256:
                    raise UserError(f"{folder / file} is altered (its SHA-256 is not the manifest's): {AGAIN}")
        return store

    def images(self, split: str) -> Images:
        """Images of a split, uint8 (N, C, H, W), memory-mapped read-only."""
        return self._array(split, "images", np.dtype(np.uint8), (self._n(split), *self.image_shape))

    def labels(self, split: str) -> Labels:
        """Labels of a split, int64 (N,), positions in `classes`, memory-mapped read-only."""
        return self._array(split, "labels", np.dtype(np.int64), (self._n(split),))

    @property
    def sha256(self) -> str:
        """One hash for all images and labels, split included."""
        return str(self.manifest["sha256"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.manifest["classes"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        image = self.manifest["image"]
        return int(image["channels"]), int(image["height"]), int(image["width"])

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training split, in 0–1 units."""
        return list(self.manifest["mean"])

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training split, in 0–1 units; never below 1/255."""
        return list(self.manifest["std"])

    def _whole(self) -> bool:
        """Whether the manifest has all entries that are used, and its hashes agree."""
        channels = self.image_shape[0]
        splits = self.manifest["splits"]
        return (
            len(self.mean) == len(self.std) == channels
            and {"settings", "classes", "problems"} <= set(self.manifest)
            and self.sha256 == _digest(splits)
            and all(
                set(splits[name]["files"]) == {_file(name, kind) for kind in KINDS}
                and splits[name]["sha256"] == files.digest(splits[name]["files"])
                and len(splits[name]["indices"]) == self._n(name)
                for name in SPLITS
            )
        )

    def _n(self, split: str) -> int:
        return int(self.manifest["splits"][split]["n"])

    def _array(self, split: str, kind: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        path = self.folder / _file(split, kind)
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: {AGAIN}") from None
        except OSError:
            raise
        except Exception:  # for a damaged header numpy raises nearly anything
            raise UserError(f"{path} is damaged or truncated: {AGAIN}") from None
        if array.dtype != dtype or array.shape != shape or array.offset + array.nbytes != path.stat().st_size:
            raise UserError(f"{path} is damaged ({array.dtype} {array.shape} instead of {dtype} {shape}): {AGAIN}")
        return array
