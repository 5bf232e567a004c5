"""SVHN: 99,289 colour images of 32×32 pixels, cropped house numbers in 10 classes (Netzer et al. 2011)."""

import io

import numpy as np

from iakd.config import Dataset
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources.archives import collect
from iakd.data.sources.download import Published, locate
from iakd.errors import UserError

PUBLISHED = Published(
    "http://ufldl.stanford.edu/housenumbers",
    {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
)


def read(settings: Dataset) -> SourceData:
    """Read the train and test images (not the `extra` ones). Raises UserError for missing or damaged files."""
    path = locate(settings, PUBLISHED)
    found = collect(path, lambda name: name in PUBLISHED.files)
    splits = []
    for name in PUBLISHED.files:
        if name not in found:
            raise UserError(f"{path}: {name} is missing; download the data set again")
        try:
            splits.append(_images(found[name]))
        except Exception as error:  # scipy raises almost anything for damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: {name} is damaged ({reason}): download it again") from None
    return SourceData(*splits[0], *splits[1], [str(digit) for digit in range(10)])


def _images(content: bytes) -> tuple[Images, Labels]:
    """Return images and labels from X uint8 (32, 32, 3, n) and y (n, 1), in which 10 is the digit 0."""
    from scipy.io import loadmat

    table = loadmat(io.BytesIO(content), variable_names=["X", "y"])
    images, labels = table["X"], table["y"].ravel().astype(np.int64) % 10
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise ValueError(f"X is {images.dtype} {images.shape}, y has {len(labels)} entries")
    if not 1 <= table["y"].min() <= table["y"].max() <= 10:
        raise ValueError("y is outside 1–10")
    return images.transpose(3, 2, 0, 1), labels
