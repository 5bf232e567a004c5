"""What a source hands over: all images of a data set, before any split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from iakd.config.base import did_you_mean
from iakd.data.file_index import Index
from iakd.data.layout import same_name
from iakd.data.perceptual_hash import Hashes
from iakd.data.store import Images, Labels
from iakd.errors import UserError


@dataclass(frozen=True)
class ImageFiles:
    """Images that stay in their files, each of which was decoded once.

    `index` (N,) lists the files below dataset.path. `moments` int64 (N, C, 2) holds, for each image scaled to `size`
    (height, width), the sums of its pixels' values and of their squares; `hashes` its perceptual hash.
    """

    index: Index
    moments: NDArray[np.int64]
    hashes: Hashes
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "ImageFiles":
        return ImageFiles(self.index[which], self.moments[which], self.hashes[which], self.size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of the decoded images."""
        return len(self), self.moments.shape[1], *self.size


SourceImages = Images | ImageFiles
Groups = NDArray[np.str_]  # (N,), the name of each image's group


@dataclass(frozen=True)
class SourceData:
    """Images uint8 (N, C, H, W) or files, labels int64 (N,) as positions in `classes`, and problems that the reader
    found.

    `test_images` and `test_labels` are None if the source has no test set of its own: the test split is then drawn from
    the training images. The same holds for validation. `groups`, by split, names the group of each image, whose images
    stay in one split (`dataset.group_by`); `folds` int64 (N,) is the fold that the user's list gives to each training
    image. Raises ValueError if a reader breaks these rules.
    """

    train_images: SourceImages
    train_labels: Labels
    test_images: SourceImages | None
    test_labels: Labels | None
    classes: list[str]
    problems: list[str] = field(default_factory=list)
    val_images: SourceImages | None = None
    val_labels: Labels | None = None
    groups: Mapping[str, Groups] | None = None
    folds: NDArray[np.int64] | None = None

    @classmethod
    def from_splits(
        cls,
        images: Mapping[str, SourceImages],
        labels: dict[str, Labels],
        classes: list[str],
        problems: list[str],
        groups: Mapping[str, Groups] | None = None,
        folds: NDArray[np.int64] | None = None,
    ) -> "SourceData":
        """Return a source's data from images and labels by split: `train` and, if there are any, `test` and `val`."""
        test, val = (images.get("test"), labels.get("test")), (images.get("val"), labels.get("val"))
        return cls(images["train"], labels["train"], *test, classes, problems, *val, groups, folds)

    def with_classes(self, wanted: int | list[str]) -> "SourceData":
        """Return only the images of some classes, numbered in the order that they have here: the first `wanted`, or
        those named.

        Raises UserError if there are not so many, or for an unknown name.
        """
        if isinstance(wanted, int):
            if wanted > len(self.classes):
                raise UserError(f"dataset.classes: {wanted} classes asked for, but there are {len(self.classes)}")
            names = set(map(same_name, self.classes[:wanted]))
        else:
            names = set(map(same_name, wanted))
            known = list(map(same_name, self.classes))
            for name in wanted:
                if same_name(name) not in known:
                    raise UserError(f"dataset.classes: no class {name!r}{did_you_mean(name, known)}")
        kept = [position for position, name in enumerate(self.classes) if same_name(name) in names]
        numbers = np.full(len(self.classes), -1)
        numbers[kept] = np.arange(len(kept))
        images: dict[str, SourceImages] = {}
        labels: dict[str, Labels] = {}
        groups: dict[str, Groups] = {}
        folds = self.folds
        for split, all_images, all_labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
            ("val", self.val_images, self.val_labels),
        ):
            if all_images is not None and all_labels is not None:
                among = np.isin(all_labels, kept)
                if not among.any():
                    raise UserError(f"dataset.classes: there are no {split} images of these classes")
                images[split], labels[split] = all_images[among], numbers[all_labels[among]]
                if self.groups:
                    groups[split] = self.groups[split][among]
                if split == "train" and folds is not None:
                    folds = folds[among]
        classes = [self.classes[position] for position in kept]
        return SourceData.from_splits(images, labels, classes, self.problems, groups or None, folds)

    def __post_init__(self) -> None:
        self._check(self.train_images, self.train_labels)
        for images, labels in ((self.test_images, self.test_labels), (self.val_images, self.val_labels)):
            if images is None or labels is None:
                if images is not labels:
                    raise ValueError("a source returns images and labels of a split, or neither")
                continue
            self._check(images, labels)
            if images.shape[1:] != self.train_images.shape[1:] or type(images) is not type(self.train_images):
                raise ValueError(f"images {images.shape} do not match the training images {self.train_images.shape}")
        given = {"train": self.train_labels, "test": self.test_labels, "val": self.val_labels}
        sizes = {name: labels.shape for name, labels in given.items() if labels is not None}
        if self.groups is not None and {name: groups.shape for name, groups in self.groups.items()} != sizes:
            raise ValueError("expected the groups of all splits, one name per image")
        if self.folds is not None and self.folds.shape != self.train_labels.shape:
            raise ValueError(f"expected folds ({len(self.train_labels)},), got {self.folds.shape}")

    def _check(self, images: SourceImages, labels: Labels) -> None:
        if isinstance(images, ImageFiles):
            if 0 in images.shape or images.moments.shape[0] != len(images):
                raise ValueError(f"image files of shape {images.shape} with moments {images.moments.shape}")
        elif images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"expected images uint8 (N, C, H, W), got {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise ValueError(f"expected labels int64 ({len(images)},), got {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise ValueError(f"labels range from {labels.min()} to {labels.max()} for {len(self.classes)} classes")
