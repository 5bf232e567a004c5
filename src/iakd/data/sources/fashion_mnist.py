"""Fashion-MNIST: 70,000 grey images of 28×28 pixels in 10 classes (Xiao, Rasul, Vollgraf 2017)."""

import numpy as np
from numpy.typing import NDArray

from iakd.config import Dataset
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources.archives import collect
from iakd.data.sources.download import Published, locate
from iakd.errors import UserError

PUBLISHED = Published(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)
PUBLISHED_TRAIN, ENDS = 60_000, [9, 0, 0, 3, 0, 5]  # the first three and the last three labels
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read(settings: Dataset) -> SourceData:
    """Read all images from IDX files, compressed or not. Raises UserError for missing or damaged files."""
    path = locate(settings, PUBLISHED)
    names = {name.removesuffix(".gz") for name in PUBLISHED.files}
    found = collect(path, lambda name: name in names)
    splits: list[tuple[Images, Labels]] = []
    for split in ("train", "t10k"):
        arrays = []
        for name, dimensions in ((f"{split}-images-idx3-ubyte", 3), (f"{split}-labels-idx1-ubyte", 1)):
            if name not in found:
                raise UserError(f"{path}: {name}.gz is missing; download the data set again")
            try:
                arrays.append(idx(found[name], dimensions))
            except ValueError as error:
                raise UserError(f"{path}: {name} is damaged ({error}): download it again") from None
        images, labels = arrays
        if len(images) != len(labels) or not len(labels) or labels.max() >= len(CLASSES):
            raise UserError(f"{path}: images and labels of {split} do not match: download them again")
        splits.append((images[:, None], labels.astype(np.int64)))
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise UserError(f"{path}: images of train and t10k differ in size: download them again")
    labels = splits[0][1].tolist()
    problems = []
    if len(labels) != PUBLISHED_TRAIN:
        problems.append(f"{len(labels):,} train images, but the publisher's files have {PUBLISHED_TRAIN:,}")
    elif labels[:3] + labels[-3:] != ENDS:
        problems.append(f"{path}: not Fashion-MNIST's labels; MNIST and its other relatives have files of these names")
    return SourceData(*splits[0], *splits[1], CLASSES.copy(), problems)


def idx(content: bytes, dimensions: int) -> NDArray[np.uint8]:
    """Return the uint8 array with `dimensions` dimensions in an IDX file. Raises ValueError."""
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise ValueError("it does not start like an IDX file of this kind")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{len(content) - start} bytes for the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
