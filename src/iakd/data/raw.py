"""What a source hands over: all images of a data set, before any split."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Raw:
    """Images uint8 (N, C, H, W), labels int64 (N,) as positions in `classes`, and problems the reader found.

    Where a source has no test set of its own, `test_images` and `test_labels` are None and the test part is
    drawn from the training images; likewise for validation. Raises ValueError where a reader breaks these rules.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images | None
    test_labels: Labels | None
    classes: list[str]
    problems: list[str] = field(default_factory=list)
    val_images: Images | None = None
    val_labels: Labels | None = None

    @classmethod
    def of_parts(
        cls, images: dict[str, Images], labels: dict[str, Labels], classes: list[str], problems: list[str]
    ) -> "Raw":
        """From images and labels by part: `train`, and `test` and `val` where the source has them."""
        test, val = (images.get("test"), labels.get("test")), (images.get("val"), labels.get("val"))
        return cls(images["train"], labels["train"], *test, classes, problems, *val)

    def __post_init__(self) -> None:
        self._check(self.train_images, self.train_labels)
        for images, labels in ((self.test_images, self.test_labels), (self.val_images, self.val_labels)):
            if images is None or labels is None:
                if images is not labels:
                    raise ValueError("a source gives images and labels of a part, or neither")
                continue
            self._check(images, labels)
            if images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(f"other images {images.shape}, training images {self.train_images.shape}")

    def _check(self, images: Images, labels: Labels) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"images are uint8 (N, C, H, W), got {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels are int64 ({len(images)},), got {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise ValueError(f"labels run from {labels.min()} to {labels.max()} for {len(self.classes)} classes")
