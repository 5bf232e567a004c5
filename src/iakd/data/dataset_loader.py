"""Loaders for a user's own torch Dataset of (image, label)."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from iakd.data.decoding import MAX_ARRAY
from iakd.data.loader import (
    EVERYTHING,
    Batch,
    BatchFormat,
    DeviceLoader,
    EpochData,
    FetchRequest,
    ImageLoader,
    Normaliser,
)
from iakd.errors import UserError
from iakd.files import plural, sha256_bytes

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and std of each channel, in 0–1 units


FEW = 8  # images by which two Datasets are told apart
AS_GIVEN = "float tensors are taken as they are: let the Dataset return uint8 images, or images of Pillow"


class _AsGiven(Normaliser):
    """For images that the Dataset has normalised."""

    def __init__(self) -> None:
        pass

    def __call__(self, images: Tensor, channels_last: bool = False) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images


class DatasetLoader(ImageLoader):
    """Images that a torch Dataset returns as float tensors (C, H, W), normalised, and augmented if it likes.

    They are asked for again in every epoch, by `workers` processes; with 0, by this one.
    """

    def __init__(
        self,
        dataset: "Dataset[Any]",
        shape: tuple[int, int, int],
        labels: NDArray[np.int64],
        device: torch.device | str,
        workers: int,
    ) -> None:
        super().__init__(shape, labels, [0.0] * shape[0], [1.0] * shape[0], device)
        self.normalise = _AsGiven()
        self._dataset, self._workers = dataset, workers
        self._first_labels = labels.tolist()  # `self.labels` may be on a GPU, which each comparison would wait for

    def epoch(
        self, seed: int, epoch: int, form: BatchFormat, start: int = 0, data: EpochData = EVERYTHING
    ) -> Iterator[Batch]:
        if data.second_view:
            raise UserError(f"the method shows each image twice, and {AS_GIVEN}")
        return super().epoch(seed, epoch, form, start, data)

    def fingerprint(self) -> str | None:
        """A hash of a few images; None if two calls for them differ, as where the Dataset draws at random."""
        chosen = np.unique(np.linspace(0, len(self.labels) - 1, FEW).astype(np.int64)).tolist()
        with torch.random.fork_rng(devices=[]):
            twice = [_collated([self._dataset[i] for i in chosen])[0].numpy().tobytes() for _ in range(2)]
        first, again = map(sha256_bytes, twice)
        return first if first == again else None

    def _fetch(self, requests: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        if len(requests) > 1:
            raise UserError(f"the method mixes images with others, and {AS_GIVEN}")
        batches = [requests[0].indices[part].tolist() for part in parts]
        loader = DataLoader(
            self._dataset,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_collated,
            # its own, or an epoch that is resumed would draw from torch's once more; others in each epoch
            generator=torch.Generator().manual_seed(zlib.crc32(requests[0].indices.numpy().tobytes())),
            pin_memory=self.device.type == "cuda",
        )
        found = iter(loader)
        for numbers in batches:
            try:
                batch, labels = next(found)
            except Exception as error:  # a user's Dataset can fail in any way, at any time
                raise UserError(f"the Dataset fails during the training ({_last_line(error)})") from error
            if batch.shape[1:] != self.image_shape:
                raise UserError(f"the Dataset returns images of {_sides(batch.shape[1:])}, then of {self.image_shape}")
            if labels != [self._first_labels[number] for number in numbers]:
                raise UserError("the Dataset returns other labels than at first: each item must keep its label")
            yield [batch.to(self.device, non_blocking=True)]


def dataset_loader(
    dataset: "Dataset[Any]", normalisation: Normalisation | None, device: torch.device | str, workers: int, name: str
) -> ImageLoader:
    """Return a loader for a torch Dataset of (image, label).

    Images of Pillow and uint8 arrays or tensors are kept on the device, and normalised by `normalisation`; float
    tensors are taken as they are. Labels are integers from 0. Raises UserError, with the Dataset's `name`, for anything
    else, and where `normalisation` is missing, or of no use.
    """
    if isinstance(dataset, IterableDataset):  # even if it has a length
        raise UserError(f"{name} is an iterable Dataset, which cannot be shuffled: give one with items by their number")
    try:
        n = len(dataset)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"{name} has no length") from None
    if n < 2:
        raise UserError(f"{name} has {plural(n, 'image')}; at least two are needed")
    labels = np.empty(n, np.int64)
    images: NDArray[np.uint8] | None = None
    shape: tuple[int, int, int] | None = None
    items = iter(DataLoader(dataset, batch_size=None, collate_fn=_item, num_workers=workers))
    for number in range(n):
        try:
            item = next(items)
        except Exception as error:  # a user's Dataset can fail in any way
            raise UserError(f"{name}: item {number} fails ({_last_line(error)})") from error
        if isinstance(item, str):
            raise UserError(f"{name}: item {number} {item}")
        image, labels[number] = item
        if shape is None:
            shape = image.shape
            if image.dtype == np.uint8:
                images = _allocated(n, shape, name)
        if image.shape != shape or (image.dtype == np.uint8) != (images is not None):
            raise UserError(
                f"{name}: item {number} is an image of {_sides(image.shape)} ({image.dtype}), and the first one was of "
                f"{_sides(shape)}: return all alike"
            )
        if images is not None:
            images[number] = image
    assert shape is not None
    if images is None:
        if normalisation is not None:
            raise UserError(f"{name} returns float tensors, which are taken as they are: leave out `normalisation`")
        return DatasetLoader(dataset, shape, labels, device, workers)
    if normalisation is None:
        raise UserError(
            f"{name} returns images of 0 to 255: say with `normalisation=(mean, std)`, one number per channel in 0–1 "
            "units, what both networks take; a trained teacher needs the one it was trained with"
        )
    try:
        mean, std = ([float(value) for value in values] for values in normalisation)
    except (TypeError, ValueError):
        raise UserError("normalisation: give (mean, std), each a list of one number per channel") from None
    if not len(mean) == len(std) == shape[0] or not all(
        0 <= m <= 1 and 0 < s <= 1 for m, s in zip(mean, std, strict=True)
    ):
        raise UserError(
            f"normalisation: give mean and std of {plural(shape[0], 'channel')} in 0–1 units, each std above 0; divide "
            "those of values up to 255 by 255"
        )
    return DeviceLoader(images, labels, mean, std, device)


def _allocated(n: int, shape: tuple[int, int, int], name: str) -> NDArray[np.uint8]:
    size = n * int(np.prod(shape))
    if size > MAX_ARRAY:
        raise UserError(
            f"{name}: its images take {size / 2**30:.1f} GiB, more than the {MAX_ARRAY >> 30} GiB that are kept in "
            "memory: let it return float tensors, which are asked for as they are needed"
        )
    return np.empty((n, *shape), np.uint8)


def _item(item: Any) -> tuple[NDArray[Any], int] | str:
    """The image (C, H, W) and the label of a Dataset's item, or what is wrong with it."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return f"is a {type(item).__name__}, not (image, label)"
    image, label = _array(item[0]), item[1]
    if isinstance(image, str):
        return image
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < 2**63:
        return f"has the label {label!r}; labels are whole numbers from 0"
    return image, int(label)


def _array(image: Any) -> NDArray[Any] | str:
    """An image as an array (C, H, W): uint8, or any float type."""
    if isinstance(image, Tensor):
        array = (image.float() if image.dtype == torch.bfloat16 else image).numpy(force=True)
    elif isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            return f"is an image of mode {image.mode}; convert it to RGB or L"
        array = np.array(image)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    else:
        return f"has a {type(image).__name__} as its image; return a tensor (C, H, W) or an image of Pillow"
    if array.ndim != 3 or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        return f"has an image of shape {array.shape} and type {array.dtype}; return (C, H, W), uint8 or float"
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        return "has an image with values that are not finite numbers"
    return array


def _collated(items: list[Any]) -> tuple[Tensor, list[int]]:
    if not all(image.is_floating_point() for image, _ in items):
        raise TypeError("not all images are float tensors, as they were at first")
    return torch.stack([image.float() for image, _ in items]), [int(label) for _, label in items]


def _last_line(error: Exception) -> str:
    """Class and last line of an error; one from another process has its traceback there, which ends with both."""
    name, last = type(error).__name__, str(error).strip().rpartition("\n")[2]
    return last if last.startswith(name) else f"{name}: {last}"


def _sides(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
