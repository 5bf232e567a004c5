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
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read(settings: Dataset) -> SourceData:
    """All images, from IDX files, compressed or not. Raises UserError for missing or damaged files."""
    path = locate(settings, PUBLISHED)
    names = {name.removesuffix(".gz") for name in PUBLISHED.files}
    found = collect(path, lambda name: name in names)
    parts: list[tuple[Images, Labels]] = []
    for part in ("train", "t10k"):
        arrays = []
        for name, sides in ((f"{part}-images-idx3-ubyte", 3), (f"{part}-labels-idx1-ubyte", 1)):
            if name not in found:
                raise UserError(f"{path}: {name}.gz is missing; get the data set anew")
            try:
                arrays.append(idx(found[name], sides))
            except ValueError as error:
                raise UserError(f"{path}: {name} is damaged ({error}): get it anew") from None
        images, labels = arrays
        if len(images) != len(labels) or not len(labels) or labels.max() >= len(CLASSES):
            raise UserError(f"{path}: images and labels of {part} do not fit together: get them anew")
        parts.append((images[:, None], labels.astype(np.int64)))
    return SourceData(*parts[0], *parts[1], CLASSES.copy())


def idx(content: bytes, sides: int) -> NDArray[np.uint8]:
    """The uint8 array of `sides` dimensions in an IDX file. Raises ValueError."""
    start = 4 + 4 * sides
    if content[:4] != bytes([0, 0, 8, sides]) or len(content) < start:
        raise ValueError("it does not begin like an IDX file of this kind")
    shape = tuple(np.frombuffer(content, ">u4", sides, 4).tolist())
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{len(content) - start} bytes for the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
