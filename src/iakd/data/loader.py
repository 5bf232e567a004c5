"""Image loaders: from uint8 images on the device to shuffled, augmented, normalised batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iakd.config import Augment
from iakd.data.augmentation import Augmenter, view_images
from iakd.data.geometry import RandomCrops
from iakd.devices import to_device
from iakd.errors import UnsuitableSettings
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
    """The images of an epoch that does not show all of them, on the CPU.

    `indices` int64 (n,) into the set. Each image is blended with the one at `partners` int64 (n,): `weights` float32
    (n,) is its own weight, and the result is rounded to whole grey levels. Weight 1 leaves the image as it is.
    """

    indices: Tensor
    partners: Tensor
    weights: Tensor

    def at(self, order: Tensor) -> "EpochSubset":
        """The images at the positions `order`."""
        return EpochSubset(self.indices[order], self.partners[order], self.weights[order])


@dataclass(frozen=True)
class EpochData:
    """What a method asks of an epoch: fewer images than all, and the augmentation of a second view of each image."""

    subset: EpochSubset | None = None
    second_view: Augment | None = None


EVERYTHING = EpochData()


@dataclass(frozen=True, eq=False)
class EpochViews:
    """What an epoch shows, position by position; known before its first batch is made, on the CPU.

    `indices` int64 (n,) into the set. `views` int64 (n,) are view numbers (`Augment.views`), -1 where the image is
    blended with another one; None where the augmentation has no finite number of views.
    """

    indices: Tensor
    views: Tensor | None


class EpochPosition(NamedTuple):
    """Where in an epoch a batch starts."""

    views: EpochViews
    start: int


def blend(images: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """weights·images + (1 - weights)·partners, rounded; uint8 (B, C, H, W), `weights` float32 (B,)."""
    own = weights.view(-1, 1, 1, 1)
    return (own * images + (1 - own) * partners).round_().to(torch.uint8)


@dataclass(frozen=True)
class BatchShard:
    """The share of a batch of `whole` images that process `rank` of `count` computes: consecutive images.

    A batch with fewer images than processes is not `divided`: each process computes all of it.
    """

    rank: int
    count: int
    whole: int

    @property
    def divided(self) -> bool:
        """Whether each process has images of its own."""
        return self.whole >= self.count

    @cached_property
    def sizes(self) -> list[int]:
        """Number of images of each process; they differ by one at most."""
        if not self.divided:
            return [self.whole] * self.count
        ends = [rank * self.whole // self.count for rank in range(self.count + 1)]
        return [end - start for start, end in pairwise(ends)]

    @property
    def part(self) -> slice:
        """Where in the batch this process's images are."""
        start = sum(self.sizes[: self.rank]) if self.divided else 0
        return slice(start, start + self.sizes[self.rank])

    @property
    def weight(self) -> float:
        """Weight of the mean over this process's images; weighted so, all processes' means sum to the batch's."""
        return self.sizes[self.rank] / self.whole if self.divided else 1 / self.count


@dataclass(frozen=True)
class Shard:
    """The share of every batch that process `rank` of `count` computes."""

    rank: int = 0
    count: int = 1

    def of(self, whole: int) -> BatchShard:
        """Of a batch of `whole` images."""
        return BatchShard(self.rank, self.count, whole)


UNSHARDED = Shard()
NO_AUGMENTATION = Augment()


@dataclass(frozen=True)
class BatchFormat:
    """The form of all batches of a training: size, augmentation, memory layout, and this process's share of each.

    With `balanced`, an epoch shows all classes equally often.
    """

    size: int
    augment: Augment = NO_AUGMENTATION
    channels_last: bool = False
    shard: Shard = UNSHARDED
    balanced: bool = False


class MixedLabels(NamedTuple):
    """Second labels of mixed images (mixup, CutMix), int64 (B,), and the `weight` float32 (B,) of the first labels."""

    labels: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` float32 (B, C, H, W), normalised; `labels` int64 (B,); `indices` int64 (B,) into the set.

    `mixed` has the second labels of mixed images; `second_view` the same images under a second augmentation, not mixed,
    where the method asks for one. `position` is the batch's place in its epoch; `shard` says which part of a batch this
    is where several processes share it.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mixed: MixedLabels | None = None
    second_view: Tensor | None = None
    position: EpochPosition | None = None
    shard: BatchShard | None = None

    @property
    def whole_size(self) -> int:
        """Number of images of the batch, including those of other processes."""
        return self.shard.whole if self.shard else len(self.labels)

    @property
    def views(self) -> Tensor | None:
        """View numbers of the images, int64 (B,) on the CPU, -1 for blended ones; None where there are no numbers."""
        if self.position is None or self.position.views.views is None:
            return None
        return self.position.views.views[self.position.start :][: len(self.labels)]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """This batch with `function` applied to each of its tensors."""
        return replace(
            self,
            images=function(self.images),
            labels=function(self.labels),
            indices=function(self.indices),
            mixed=MixedLabels(*map(function, self.mixed)) if self.mixed else None,
            second_view=None if self.second_view is None else function(self.second_view),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the batch, by name."""
        named = {"images": self.images, "labels": self.labels, "indices": self.indices}
        if self.mixed:
            named |= {f"mixed.{name}": value for name, value in self.mixed._asdict().items()}
        return named if self.second_view is None else {**named, "second_view": self.second_view}

    def take(self, shard: BatchShard) -> "Batch":
        """The part of this batch that `shard` names."""
        position = self.position and self.position._replace(start=self.position.start + shard.part.start)
        return replace(self.map_tensors(lambda tensor: tensor[shard.part]), position=position, shard=shard)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches of an epoch of `n` images.

    The last one may be short, but a single leftover image is left out: BatchNorm cannot normalise one image.
    """
    full, rest = divmod(n, batch_size)
    return full + (rest > 1)


def last_batch(n: int, batch_size: int) -> int:
    """Number of images in the last of these batches."""
    rest = n % batch_size
    return rest if rest > 1 else batch_size


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return the positions in `labels` (n,) that an epoch shows, int64 (n,), such that each class is shown equally
    often, to within one image.

    Of a class that has more images than are shown, some are left out; of one that has fewer, each is shown equally
    often, to within once. Drawn on the CPU.
    """
    labels, draw = labels.cpu(), generator("balanced", seed, epoch)
    by_class = labels.argsort(stable=True).split(labels.bincount().tolist())
    present = [positions for positions in by_class if len(positions)]
    shares = torch.full((len(present),), len(labels) // len(present))
    shares[torch.randperm(len(present), generator=draw)[: len(labels) % len(present)]] += 1
    shown = []
    for positions, share in zip(present, shares.tolist(), strict=True):
        rounds = -(-share // len(positions))
        shown += [torch.cat([positions[torch.randperm(len(positions), generator=draw)] for _ in range(rounds)])[:share]]
    return torch.cat(shown)[torch.randperm(len(labels), generator=draw)]


class FetchRequest(NamedTuple):
    """The image at each position of an epoch, int64 (n,) on the CPU, and its random crop; None: the centre crop."""

    indices: Tensor
    crops: RandomCrops | None


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
        self.normalise = Normaliser(mean, std, self.device)

    def __len__(self) -> int:
        return len(self.labels)

    def close(self) -> None:
        """Stop the processes that work for this loader, if any. The next batch starts them again."""
        return

    @abstractmethod
    def _fetch(self, requests: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        """For each of the `parts` of an epoch, the images of each request, uint8 (B, C, H, W), on the device."""

    def epoch(
        self, seed: int, epoch: int, form: BatchFormat, start: int = 0, data: EpochData = EVERYTHING
    ) -> Iterator[Batch]:
        """Training batches `start`, `start` + 1, … of an epoch, or a shard of each: shuffled, augmented, normalised.

        The order and the augmentation have random streams of their own, drawn for the whole epoch on the CPU. So a
        batch depends on (seed, epoch, size) and its position only: not on `start`, the device or earlier batches.
        The second view is drawn independently of the first and mixes no images.
        """
        subset, second = data.subset, data.second_view
        if second and second.mixes:
            raise ValueError("a second view has its image's label, so it cannot be mixed with another image")
        n, size = len(subset.indices) if subset else len(self), self.image_shape[1:]
        if form.balanced:
            order = balanced_order(self.labels[subset.indices.to(self.device)] if subset else self.labels, seed, epoch)
        else:
            order = torch.randperm(n, generator=generator("order", seed, epoch))
        chosen = subset.at(order) if subset else None
        augment, shard = form.augment, form.shard
        first = Augmenter(augment, size, n, seed, epoch, self.device)
        extra = Augmenter(second, size, n, seed, epoch, self.device, stream="second") if second else None
        views = first.views
        if chosen and views is not None:
            views = views.where(chosen.weights == 1, -1)
        epoch_views = EpochViews(chosen.indices if chosen else order, views)
        crops = [RandomCrops.of(augment, "augment", seed, epoch)]
        if second:
            crops.append(RandomCrops.of(second, "second", seed, epoch))
        different = list(dict.fromkeys(crops))  # what both views need is fetched once
        requests = [FetchRequest(epoch_views.indices, some) for some in different]
        if chosen and bool((chosen.weights < 1).any()):
            requests.append(FetchRequest(chosen.partners, RandomCrops.of(augment, "partner", seed, epoch)))
        order = to_device(epoch_views.indices, self.device)
        parts = [slice(i * form.size, min((i + 1) * form.size, n)) for i in range(start, steps_per_epoch(n, form.size))]
        shards = [shard.of(part.stop - part.start) for part in parts]
        if not augment.mixes:  # mixing needs the images of the other processes, too
            parts = [_within(part, own) for part, own in zip(parts, shards, strict=True)]
        for part, own, fetched in zip(parts, shards, self._fetch(requests, parts), strict=True):
            indices = order[part]
            raw = fetched[: len(different)]
            if chosen and bool((chosen.weights[part] < 1).any()):
                weights = to_device(chosen.weights[part], self.device)
                raw = [blend(images, fetched[-1], weights) for images in raw]
            labels = self.labels.index_select(0, indices)
            images, mixed = self._finished(first, raw[0], labels, part, form)
            again = raw[different.index(crops[-1])]
            batch = Batch(
                images=images,
                labels=labels,
                indices=indices,
                mixed=mixed,
                second_view=self._finished(extra, again, labels, part, form)[0] if extra else None,
                position=EpochPosition(epoch_views, part.start),
                shard=own if shard.count > 1 else None,
            )
            yield batch.take(own) if augment.mixes and shard.count > 1 else batch

    def _finished(
        self, augmenter: Augmenter, images: Tensor, labels: Tensor, part: slice, form: BatchFormat
    ) -> tuple[Tensor, MixedLabels | None]:
        normalised = self.normalise(augmenter.apply(images, part), form.channels_last)
        images, other, weight = augmenter.finish(normalised, labels, part)
        return images, None if other is None or weight is None else MixedLabels(other, weight)

    def plain(self, batch_size: int, channels_last: bool = False, shard: Shard = UNSHARDED) -> Iterator[Batch]:
        """All images, or a shard of them, in order, normalised but not augmented; the last batch may be short."""
        indices = torch.arange(len(self), device=self.device)
        own = shard.of(len(self)).part
        parts = [slice(at, min(at + batch_size, own.stop)) for at in range(own.start, own.stop, batch_size)]
        request = FetchRequest(torch.arange(len(self)), None)
        for part, fetched in zip(parts, self._fetch([request], parts), strict=True):
            yield Batch(self.normalise(fetched[0], channels_last), self.labels[part], indices[part])


def _within(part: slice, shard: BatchShard) -> slice:
    return slice(part.start + shard.part.start, part.start + shard.part.stop)


class DeviceLoader(ImageLoader):
    """A set that lies on the device: `images` uint8 (N, C, H, W), the rest as in `ImageLoader`."""

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

    def _fetch(self, requests: list[FetchRequest], parts: list[slice]) -> Iterator[list[Tensor]]:
        if any(request.crops for request in requests):
            raise UnsuitableSettings(
                "augment.crop: resized needs the images in their full size: set dataset.storage to files "
                "(sources image_folder and imagenet), then run `iakd prepare`"
            )
        orders = [to_device(request.indices, self.device) for request in requests]
        for part in parts:
            yield [self.images.index_select(0, order[part]) for order in orders]

    def view_images(self, indices: Tensor, views: Tensor, augment: Augment, channels_last: bool = False) -> Tensor:
        """The views with numbers `views` int64 (B,) of the images at `indices` (B,): float32 (B, C, H, W), normalised.

        Bit for bit what `epoch` gives for the same indices and views.
        """
        images = self.images.index_select(0, indices)
        return self.normalise(view_images(images, views, augment), channels_last)
