"""From uint8 images to what networks see."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iakd.config import Augment
from iakd.data.augmentation import Augmenter, view_images
from iakd.data.geometry import RandomCrops
from iakd.devices import to_device
from iakd.errors import UserError
from iakd.seeding import generator


class Normaliser:
    """(v/255 - mean)/std per channel; `mean` and `std` in 0–1 units."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        m, s = (torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self._scale = (1 / (255 * s)).to(device, torch.float32)  # as one multiplication and one addition
        self._shift = (-m / s).to(device, torch.float32)

    def __call__(self, images: Tensor, channels_last: bool = False) -> Tensor:
        """Images float32 (B, C, H, W), never sharing memory, from uint8 ones of that shape."""
        images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@dataclass(frozen=True, eq=False)
class EpochSubset:
    """The images that an epoch is made of, where these are not simply all; on the CPU.

    `indices` int64 (n,) into the set. What is shown of each is `weights` float32 (n,) of it and the rest of the image
    at `partners` int64 (n,), rounded to whole levels: where the weight is 1, the image as it is.
    """

    indices: Tensor
    partners: Tensor
    weights: Tensor

    def at(self, order: Tensor) -> "EpochSubset":
        """The images at the positions `order`."""
        return EpochSubset(self.indices[order], self.partners[order], self.weights[order])


@dataclass(frozen=True, eq=False)
class EpochViews:
    """An epoch, position by position, known before its first batch is made; on the CPU.

    `indices` int64 (n,) into the set; `views` int64 (n,): the number of the view (`Augment.views`), -1 where the image
    is mixed with another, None where views have no numbers. All batches but the last have `batch_size` images.
    """

    indices: Tensor
    views: Tensor | None
    batch_size: int


def blend(images: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """weights·images + (1 - weights)·partners, rounded; uint8 (B, C, H, W), `weights` float32 (B,)."""
    own = weights.view(-1, 1, 1, 1)
    return (own * images + (1 - own) * partners).round_().to(torch.uint8)


@dataclass(frozen=True)
class BatchShard:
    """What process `rank` of `count` computes of a batch of `whole` images: a stretch of it, the first ones first.

    Where there are fewer images than processes the batch is not `divided`: each process computes all of it.
    """

    rank: int
    count: int
    whole: int

    @property
    def divided(self) -> bool:
        """Whether each process has other images."""
        return self.whole >= self.count

    @cached_property
    def sizes(self) -> list[int]:
        """How many images each process has; at most one more than any other."""
        if not self.divided:
            return [self.whole] * self.count
        ends = [rank * self.whole // self.count for rank in range(self.count + 1)]
        return [end - start for start, end in pairwise(ends)]

    @property
    def part(self) -> slice:
        """Where in the batch the own images are."""
        start = sum(self.sizes[: self.rank]) if self.divided else 0
        return slice(start, start + self.sizes[self.rank])

    @property
    def weight(self) -> float:
        """Of the mean over the own images: the sum over all processes is then the mean over the batch."""
        return self.sizes[self.rank] / self.whole if self.divided else 1 / self.count


@dataclass(frozen=True)
class Shard:
    """The part that process `rank` of `count` has of every batch."""

    rank: int = 0
    count: int = 1

    def of(self, whole: int) -> BatchShard:
        """Of a batch of so many images."""
        return BatchShard(self.rank, self.count, whole)


UNSHARDED = Shard()


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` float32 (B, C, H, W), normalised; `labels` int64 (B,); `indices` int64 (B,) into the set.

    `views` int64 (B,): which of its image's `Augment.views` each one is, None where these are not finitely many.
    Where images are mixed, `other` int64 (B,) are the labels of those mixed in, and `share` float32 (B,) is the
    weight of the own label; both are None where they are not. `second`: the same images under another augmentation,
    where one was asked for; they are not mixed. `shown`: the epoch, in which this batch begins at the position `start`.
    `cut`: which part of a batch these are, where several processes share it.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Tensor | None = None
    other: Tensor | None = None
    share: Tensor | None = None
    second: Tensor | None = None
    shown: EpochViews | None = None
    start: int = 0
    cut: BatchShard | None = None

    @property
    def whole(self) -> int:
        """How many images the batch has, those of other processes included."""
        return self.cut.whole if self.cut else len(self.labels)

    def cut_to(self, cut: BatchShard) -> "Batch":
        """That part of this batch."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {name: value[cut.part] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **parts, start=self.start + cut.part.start, cut=cut)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches of an epoch of `n` images; see `ImageLoader.steps`."""
    full, rest = divmod(n, batch_size)
    return full + (rest > 1)


class FetchRequest(NamedTuple):
    """Which image each position of an epoch shows, int64 (n,) on the CPU, and in which crop; None: the usual one."""

    indices: Tensor
    crops: RandomCrops | None


def _within(part: slice, cut: BatchShard) -> slice:
    return slice(part.start + cut.part.start, part.start + cut.part.stop)


class ImageLoader(ABC):
    """A set of images, and its batches.

    `labels` int64 (N,); `mean` and `std` per channel in 0–1 units, by which batches are normalised. `image_shape`
    (C, H, W) is that of every image.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.image_shape = image_shape
        self.labels = torch.from_numpy(np.array(labels)).to(self.device)
        self.normalised = Normaliser(mean, std, self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def close(self) -> None:
        """End what runs beside this process for these batches, if anything does. The next batch starts it again."""
        return

    @abstractmethod
    def _fetch(self, wanted: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        """For each of the `parts` of an epoch the images of each of `wanted`, uint8 (B, C, H, W), on the device."""

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch. The last may be short, but a single leftover image is left out.

        BatchNorm cannot normalise one image.
        """
        return steps_per_epoch(len(self), batch_size)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        augment: Augment,
        start: int = 0,
        channels_last: bool = False,
        second: Augment | None = None,
        choice: EpochSubset | None = None,
        share: Shard = UNSHARDED,
    ) -> Iterator[Batch]:
        """Training batches `start`, `start` + 1, … of an epoch, or a share of each: shuffled, augmented, normalised.

        Order and augmentation are streams of their own, drawn for the whole epoch on the CPU, so that a batch
        depends on (seed, epoch, batch_size) and its position alone: not on `start`, the device or the past. `second`
        is an augmentation for `Batch.second`, drawn independently of the first, and mixes no images; `choice` says
        which images there are.
        """
        if second and second.mixes:
            raise ValueError("a second view has its image's label, so it cannot be mixed with another image")
        n, size = len(choice.indices) if choice else len(self), self.image_shape[1:]
        order = torch.randperm(n, generator=generator("order", seed, epoch))
        chosen = choice.at(order) if choice else None
        first = Augmenter(augment, size, n, seed, epoch, self.device)
        extra = Augmenter(second, size, n, seed, epoch, self.device, stream="second") if second else None
        views = first.views
        if chosen and views is not None:
            views = views.where(chosen.weights == 1, -1)
        shown = EpochViews(chosen.indices if chosen else order, views, batch_size)
        crops = [RandomCrops.of(augment, "augment", seed, epoch)]
        if second:
            crops.append(RandomCrops.of(second, "second", seed, epoch))
        different = list(dict.fromkeys(crops))  # what is wanted twice is fetched once
        wanted = [FetchRequest(shown.indices, some) for some in different]
        if chosen and bool((chosen.weights < 1).any()):
            wanted.append(FetchRequest(chosen.partners, RandomCrops.of(augment, "partner", seed, epoch)))
        order = to_device(shown.indices, self.device)
        numbers = None if views is None else to_device(views, self.device)
        parts = [
            slice(i * batch_size, min((i + 1) * batch_size, n)) for i in range(start, steps_per_epoch(n, batch_size))
        ]
        cuts = [share.of(part.stop - part.start) for part in parts]
        if not augment.mixes:  # else the images of the others are needed, too
            parts = [_within(part, cut) for part, cut in zip(parts, cuts, strict=True)]
        for part, cut, fetched in zip(parts, cuts, self._fetch(wanted, parts), strict=True):
            indices = order[part]
            seen = fetched[: len(different)]
            if chosen and bool((chosen.weights[part] < 1).any()):
                weights = to_device(chosen.weights[part], self.device)
                seen = [blend(images, fetched[-1], weights) for images in seen]
            labels = self.labels.index_select(0, indices)
            main, other, weight_of_own = self._shown(first, seen[0], labels, part, channels_last)
            again = seen[different.index(crops[-1])]
            batch = Batch(
                images=main,
                labels=labels,
                indices=indices,
                views=None if numbers is None else numbers[part],
                other=other,
                share=weight_of_own,
                second=self._shown(extra, again, labels, part, channels_last)[0] if extra else None,
                shown=shown,
                start=part.start,
                cut=cut if share.count > 1 else None,
            )
            yield batch.cut_to(cut) if augment.mixes and share.count > 1 else batch

    def _shown(
        self, by: Augmenter, images: Tensor, labels: Tensor, part: slice, channels_last: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return by.finish(self.normalised(by.apply(images, part), channels_last), labels, part)

    def plain(
        self,
        batch_size: int,
        channels_last: bool = False,
        augment: Augment = Augment(),  # noqa: B008 - never changed
        share: Shard = UNSHARDED,
    ) -> Iterator[Batch]:
        """All images, or a share of them, in their order, unchanged but normalised; the last batch may be short.

        `augment` says how the unchanged view is numbered.
        """
        indices = torch.arange(len(self), device=self.device)
        views = torch.full_like(indices, augment.unchanged)
        own = share.of(len(self)).part
        parts = [slice(at, min(at + batch_size, own.stop)) for at in range(own.start, own.stop, batch_size)]
        for part, fetched in zip(parts, self._fetch([FetchRequest(torch.arange(len(self)), None)], parts), strict=True):
            images = self.normalised(fetched[0], channels_last)
            yield Batch(images, self.labels[part], indices[part], views[part])


class DeviceLoader(ImageLoader):
    """A set held on the device: `images` uint8 (N, C, H, W), the rest as of `ImageLoader`."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
    ) -> None:
        _, channels, height, width = images.shape
        super().__init__((channels, height, width), labels, mean, std, device)
        self.images = torch.from_numpy(np.array(images)).to(self.device)  # a copy: memory-mapped arrays are read-only

    def _fetch(self, wanted: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        if any(some.crops for some in wanted):
            raise UserError(
                "augment.crop: resized needs the images in their full size: set dataset.storage to files "
                "(sources image_folder and imagenet), then run `iakd prepare`"
            )
        orders = [to_device(some.indices, self.device) for some in wanted]
        for part in parts:
            yield [self.images.index_select(0, order[part]) for order in orders]

    def view_images(self, indices: Tensor, views: Tensor, augment: Augment, channels_last: bool = False) -> Tensor:
        """Views int64 (B,) of the images at `indices` (B,), as float32 (B, C, H, W), normalised.

        They are, bit by bit, the images of a batch of `epoch` with these `indices` and `views`.
        """
        images = self.images.index_select(0, indices)
        return self.normalised(view_images(images, views, augment), channels_last)
