"""The prepared data set on disk: memory-mapped arrays of its images, or an index of their files, and a manifest with
hashes.

Reading is separate from writing, so that a change in a source's reader does not change what trainings depend on.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd import files
from iakd.data.file_index import Index, index_dtype
from iakd.errors import UserError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SPLITS = ("train", "val", "test")
KINDS = {"array": ("images", "labels"), "files": ("files", "labels")}  # of files of a split, by `storage`
MANIFEST = "manifest.json"
PREPARE_AGAIN = "run `iakd prepare` again"


def file_name(split: str, kind: str) -> str:
    """Return the name of a split's file of `kind`."""
    return f"{split}.{kind}.npy"


def combined_sha256(splits: dict[str, Any]) -> str:
    """Return one hash for all images and labels of a data set."""
    return files.digest({name: splits[name]["sha256"] for name in SPLITS})


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A prepared data set; use `open`."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, check: bool = True, settings: dict[str, Any] | None = None) -> "PreparedData":
        """Open the data set in `folder`, checking the sizes of its files and, with `check`, their hashes.

        Raises UserError if anything is missing or damaged, or if it was prepared with other `settings` than those
        given.
        """
        path = folder / MANIFEST
        manifest = files.read_json(path, PREPARE_AGAIN if path.exists() else "run `iakd prepare`")
        store = cls(folder, manifest)
        try:
            complete = store._is_complete()
        except (KeyError, TypeError, ValueError, AttributeError):
            complete = False
        if not complete:
            raise UserError(f"{path} is damaged (entries are missing, changed or inconsistent): {PREPARE_AGAIN}")
        if settings is not None and manifest["settings"] != settings:
            raise UserError(f"{folder} was prepared with other settings of `dataset`: {PREPARE_AGAIN}")
        if store.storage == "files" and not store.root.is_dir():
            raise UserError(f"dataset.path: {store.root} does not exist; it holds the images of {folder}")
        for name in SPLITS:
            store.files(name) if store.storage == "files" else store.images(name)
            store.labels(name)
            for file, sha256 in manifest["splits"][name]["files"].items():
                if check and files.sha256_file(folder / file) != sha256:
                    raise UserError(f"{folder / file} was altered (its SHA-256 is not the manifest's): {PREPARE_AGAIN}")
        return store

    def images(self, split: str) -> Images:
        """Return the images of a split, uint8 (N, C, H, W), memory-mapped read-only; only if `storage` is array."""
        return self._array(split, "images", np.dtype(np.uint8), (self._count(split), *self.image_shape))

    def files(self, split: str) -> Index:
        """Return a split's index (N,) of files below `root`, memory-mapped read-only; only if `storage` is files."""
        array: Index = self._array(split, "files", None, (self._count(split),))
        return array

    def labels(self, split: str) -> Labels:
        """Return the labels of a split, int64 (N,), positions in `classes`, memory-mapped read-only."""
        return self._array(split, "labels", np.dtype(np.int64), (self._count(split),))

    @property
    def storage(self) -> str:
        """`array`, or `files` if the images stay in the user's files."""
        return str(self.manifest["storage"])

    @property
    def root(self) -> Path:
        """The user's folder, dataset.path."""
        return Path(self.manifest["settings"]["path"]).expanduser()

    @property
    def crop_pct(self) -> float:
        """The setting `crop_pct` of the data set."""
        return float(self.manifest["settings"]["crop_pct"])

    @property
    def sha256(self) -> str:
        """One hash for all images and labels and their split; of files, for their paths and contents."""
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

    def _is_complete(self) -> bool:
        """Return whether the manifest has all entries that are used, with consistent hashes."""
        channels = self.image_shape[0]
        splits = self.manifest["splits"]
        return (
            len(self.mean) == len(self.std) == channels
            and {"settings", "classes", "problems"} <= set(self.manifest)
            and self.sha256 == combined_sha256(splits)
            and all(
                set(splits[name]["files"]) == {file_name(name, kind) for kind in KINDS[self.storage]}
                and splits[name]["sha256"] == files.digest(splits[name]["files"])
                and len(splits[name]["indices"]) == self._count(name)
                for name in SPLITS
            )
        )

    def _count(self, split: str) -> int:
        return int(self.manifest["splits"][split]["n"])

    def _array(self, split: str, kind: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> NDArray[Any]:
        """Open an array file. `dtype` None: an index, whose dtype depends on its longest path."""
        path = self.folder / file_name(split, kind)
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: {PREPARE_AGAIN}") from None
        except OSError:
            raise
        except Exception:  # numpy raises almost anything for a damaged header
            raise UserError(f"{path} is damaged or truncated: {PREPARE_AGAIN}") from None
        if dtype is None:
            names = array.dtype.names or ()
            dtype = index_dtype(array.dtype["path"].itemsize if "path" in names else 1)
        if array.dtype != dtype or array.shape != shape or array.offset + array.nbytes != path.stat().st_size:
            raise UserError(
                f"{path} is damaged ({array.dtype} {array.shape} instead of {dtype} {shape}): {PREPARE_AGAIN}"
            )
        return array
