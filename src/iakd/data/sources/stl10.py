"""STL-10: the 13,000 labelled colour images of 96×96 pixels in 10 classes (Coates, Lee, Ng 2011)."""

import numpy as np

from iakd.config import Dataset
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources.archives import collect
from iakd.data.sources.download import Published, locate
from iakd.errors import UserError

PUBLISHED = Published(
    "http://ai.stanford.edu/~acoates/stl10", {"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"}
)
CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
SIDE = 96
FILES = {"train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"}


def read(settings: Dataset) -> SourceData:
    """Read the labelled images from the binary version. Raises UserError for missing or damaged files."""
    path = locate(settings, PUBLISHED)
    found = collect(path, FILES.__contains__)
    for name in sorted(FILES - {"class_names.txt"} - set(found)):
        raise UserError(f"{path}: {name} is missing; download the data set again")
    splits = []
    for split in ("train", "test"):
        try:
            splits.append(_images(found[f"{split}_X.bin"], found[f"{split}_y.bin"]))
        except ValueError as error:
            raise UserError(
                f"{path}: {split}_X.bin and {split}_y.bin do not match ({error}): download them again"
            ) from None
    classes = found.get("class_names.txt", b"").decode(errors="replace").split() or CLASSES.copy()
    if len(classes) != len(CLASSES):
        raise UserError(f"{path}: class_names.txt names {len(classes)} classes, expected {len(CLASSES)}")
    return SourceData(*splits[0], *splits[1], classes)


def _images(pixels: bytes, numbers: bytes) -> tuple[Images, Labels]:
    """Return pixels (n, 3, 96, 96), stored column by column in each channel, and labels 1–10 as 0–9."""
    labels = np.frombuffer(numbers, np.uint8).astype(np.int64) - 1
    if len(pixels) != len(labels) * 3 * SIDE * SIDE or not len(labels):
        raise ValueError(f"{len(pixels)} bytes for {len(labels)} images")
    if not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError("labels outside 1–10")
    return np.frombuffer(pixels, np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2), labels
