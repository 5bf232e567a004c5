"""CIFAR-10 and CIFAR-100 in any of their forms: Python pickles, the binary version, Parquet."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import decode_all
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources import archives
from iakd.data.sources.archives import collect
from iakd.data.sources.download import Published, locate
from iakd.data.sources.parquet import open_table, split_files
from iakd.errors import UserError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
EXPECTED = {"train": 50_000, "test": 10_000}
Arrays = tuple[Images, Labels]


@dataclass(frozen=True)
class Cifar:
    """What the files of one of the two sets are called, and what is in them."""

    train: tuple[str, ...]  # names of the pickles; '.bin' is added in the binary version
    test: str
    pickled_meta: str
    pickled_names: str  # keys of the class names and
    pickled_labels: str  # … of the labels
    text_names: str
    label_bytes: int  # in a record of the binary version
    label_at: int  # which of them is read
    column: str | None  # of the labels, in Parquet
    classes: tuple[str, ...]  # where the files do not say them


def read(path: Path, cifar: Cifar, only_test: bool) -> SourceData:
    """All images of a CIFAR set. Raises UserError where files are missing or damaged."""
    pickles = {*cifar.train, cifar.test, cifar.pickled_meta}
    binary = {f"{name}.bin" for name in (*cifar.train, cifar.test)} | {cifar.text_names}
    found = {} if path.suffix == ".parquet" else collect(path, lambda name: name in pickles | binary)
    names: list[str] | None
    if any(name.endswith(".bin") for name in found):
        names = _text(found.get(cifar.text_names))
        parts = _parts(path, found, cifar, ".bin", only_test, _records)
    elif found:
        names = _pickled_names(found.get(cifar.pickled_meta), cifar, path)
        parts = _parts(path, found, cifar, "", only_test, _pickled)
    elif path.suffix == ".parquet" or next(path.rglob("*.parquet"), None):
        names, parts = _from_parquet(path, cifar, only_test)
    else:
        raise UserError(f"{path}: has none of the files of this data set ({cifar.test}, {cifar.test}.bin, *.parquet)")
    classes = list(names or cifar.classes)
    if len(classes) != len(cifar.classes):
        raise UserError(f"{path}: names {len(classes)} classes where there are {len(cifar.classes)}: get it anew")
    problems = []
    for part, (_, labels) in parts.items():
        if len(labels) != EXPECTED[part]:
            problems.append(f"{len(labels):,} {part} images where the publisher's files have {EXPECTED[part]:,}")
        if not 0 <= labels.min() <= labels.max() < len(classes):
            raise UserError(f"{path}: has labels from {labels.min()} to {labels.max()}: damaged, get it anew")
    if only_test:
        return SourceData(*parts["test"], None, None, classes, [*problems, "only the publisher's test files are used"])
    return SourceData(*parts["train"], *parts["test"], classes, problems)


Reader = Callable[[bytes, Cifar], Arrays]


def _parts(
    path: Path, found: dict[str, bytes], cifar: Cifar, suffix: str, only_test: bool, reader: Reader
) -> dict[str, Arrays]:
    parts = {}
    for part, names in (("train", cifar.train), ("test", (cifar.test,))):
        if only_test and part == "train":
            continue
        arrays = []
        for name in (f"{name}{suffix}" for name in names):
            if name not in found:
                raise UserError(f"{path}: {name} is missing; get the data set anew")
            try:
                arrays.append(reader(found.pop(name), cifar))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path}: {name} is damaged or no file of this data set ({reason})") from None
        parts[part] = arrays[0] if len(arrays) == 1 else _joined(arrays)
    return parts


def _joined(arrays: list[Arrays]) -> Arrays:
    return np.concatenate([images for images, _ in arrays]), np.concatenate([labels for _, labels in arrays])


def _records(content: bytes, cifar: Cifar) -> Arrays:
    """The binary version: label byte(s), then 3,072 pixels, channel by channel."""
    length = cifar.label_bytes + PIXELS
    if not content or len(content) % length:
        raise ValueError(f"{len(content)} bytes are no multiple of {length}")
    table = np.frombuffer(content, np.uint8).reshape(-1, length)
    return table[:, cifar.label_bytes :].reshape(-1, *SHAPE), table[:, cifar.label_at].astype(np.int64)


def _pickled(content: bytes, cifar: Cifar) -> Arrays:
    """The Python version: a dictionary with `data` uint8 (n, 3072) and lists of labels."""
    table = _strings(archives.loads(content))
    pixels = np.asarray(table["data"])
    labels = np.asarray(table[cifar.pickled_labels], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or labels.ndim != 1 or not len(labels):
        raise ValueError(f"data are {pixels.dtype} {pixels.shape}, labels {labels.shape}")
    return pixels.reshape(-1, *SHAPE), labels


def _strings(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError("it is no dictionary")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in table.items()}


def _pickled_names(content: bytes | None, cifar: Cifar, path: Path) -> list[str] | None:
    if content is None:
        return None
    try:
        names = _strings(archives.loads(content))[cifar.pickled_names]
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {cifar.pickled_meta} is damaged or no file of this data set ({reason})") from None


def _text(content: bytes | None) -> list[str] | None:
    return None if content is None else [line for line in content.decode(errors="replace").split("\n") if line.strip()]


def _from_parquet(path: Path, cifar: Cifar, only_test: bool) -> tuple[list[str] | None, dict[str, Arrays]]:
    parts, names = {}, None
    files = split_files(path)
    for part in ("test",) if only_test else ("train", "test"):
        if part not in files:
            raise UserError(f"{path}: has no Parquet files of the {part} images ({part}-….parquet)")
        table = open_table(files[part], None, cifar.column)
        labels = np.asarray(table.labels())
        if labels.dtype.kind not in "iu":
            raise UserError(f"{path}: column {table.label!r} has rows without a whole number")
        decoded = decode_all(table.items(), len(labels), 3, None, "refuse", str(path))
        if decoded.images.shape[1:] != SHAPE:
            raise UserError(f"{path}: images of {decoded.images.shape[1:]} instead of {SHAPE}")
        parts[part] = decoded.images, labels.astype(np.int64)
        names = names or table.names
    return names, parts


CIFAR10_FILES = Published(
    "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FORM = Cifar(
    train=tuple(f"data_batch_{batch}" for batch in range(1, 6)),
    test="test_batch",
    pickled_meta="batches.meta",
    pickled_names="label_names",
    pickled_labels="labels",
    text_names="batches.meta.txt",
    label_bytes=1,
    label_at=0,
    column=None,
    classes=CLASSES,
)


def read_cifar10(settings: Dataset) -> SourceData:
    """All images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    return read(locate(settings, CIFAR10_FILES), FORM, settings.only_test)


CIFAR100_FILES = Published(
    "https://www.cs.toronto.edu/~kriz", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
)
FINE_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
COARSE_CLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2
"""
FINE = Cifar(
    train=("train",),
    test="test",
    pickled_meta="meta",
    pickled_names="fine_label_names",
    pickled_labels="fine_labels",
    text_names="fine_label_names.txt",
    label_bytes=2,  # coarse, fine
    label_at=1,
    column="fine_label",
    classes=tuple(FINE_CLASSES.split()),
)
COARSE = dataclasses.replace(
    FINE,
    pickled_names="coarse_label_names",
    pickled_labels="coarse_labels",
    text_names="coarse_label_names.txt",
    label_at=0,
    column="coarse_label",
    classes=tuple(COARSE_CLASSES.split()),
)


def read_cifar100(settings: Dataset) -> SourceData:
    """All images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    form = FINE if settings.labels == "fine" else COARSE
    return read(locate(settings, CIFAR100_FILES), form, settings.only_test)
