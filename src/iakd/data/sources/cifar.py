"""CIFAR-10 and CIFAR-100 in all their formats: Python pickles, the binary version, Parquet."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iakd.config import Dataset
from iakd.data.decoding import decode_all, scale_all
from iakd.data.source_data import Images, Labels, SourceData
from iakd.data.sources import archives
from iakd.data.sources.archives import collect
from iakd.data.sources.download import Published, locate
from iakd.data.sources.parquet import SUFFIXES, open_tables, parquet_files, split_files
from iakd.errors import UserError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
EXPECTED = {"train": 50_000, "test": 10_000}
LabelledImages = tuple[Images, Labels]


@dataclass(frozen=True)
class CifarFormat:
    """The file names of one of the two data sets, and what its files contain."""

    train: tuple[str, ...]  # names of the pickles; '.bin' is added in the binary version
    test: str
    pickled_meta: str
    pickled_names: str  # keys of the class names and
    pickled_labels: str  # … of the labels
    text_names: str
    label_bytes: int  # per record of the binary version
    label_at: int  # index of the one that is read
    column: str | None  # of the labels, in Parquet
    classes: tuple[str, ...]  # if the files do not name them


def read(path: Path, cifar: CifarFormat, settings: Dataset) -> SourceData:
    """Read all images of a CIFAR data set. Raises UserError if files are missing or damaged."""
    only_test = settings.only_test
    pickles = {*cifar.train, cifar.test, cifar.pickled_meta}
    binary = {f"{name}.bin" for name in (*cifar.train, cifar.test)} | {cifar.text_names}
    found = {} if path.suffix.lower() in SUFFIXES else collect(path, lambda name: name in pickles | binary)
    names: list[str] | None
    if any(name.endswith(".bin") for name in found):
        names = _lines(found.get(cifar.text_names))
        splits = _read_splits(path, found, cifar, ".bin", only_test, _read_binary)
    elif found:
        names = _pickled_names(found.get(cifar.pickled_meta), cifar, path)
        splits = _read_splits(path, found, cifar, "", only_test, _read_pickle)
    elif path.suffix.lower() in SUFFIXES or (path.is_dir() and parquet_files(path)):
        names, splits = _from_parquet(path, cifar, only_test)
    else:
        raise UserError(f"{path}: has none of the files of this data set ({cifar.test}, {cifar.test}.bin, *.parquet)")
    classes = list(names or cifar.classes)
    if len(classes) != len(cifar.classes):
        raise UserError(f"{path}: names {len(classes)} classes, expected {len(cifar.classes)}: download it again")
    problems = []
    for split, (_, labels) in splits.items():
        if len(labels) != EXPECTED[split]:
            problems.append(f"{len(labels):,} {split} images, but the publisher's files have {EXPECTED[split]:,}")
        _check_labels(labels, cifar, path)
    if settings.height_width:
        splits = {
            split: (scale_all(images, settings.height_width), labels) for split, (images, labels) in splits.items()
        }
    if only_test:
        return SourceData(*splits["test"], None, None, classes, [*problems, "only the publisher's test files are used"])
    return SourceData(*splits["train"], *splits["test"], classes, problems)


Reader = Callable[[bytes, CifarFormat], LabelledImages]


def _read_splits(
    path: Path, found: dict[str, bytes], cifar: CifarFormat, suffix: str, only_test: bool, reader: Reader
) -> dict[str, LabelledImages]:
    splits = {}
    for split, names in (("train", cifar.train), ("test", (cifar.test,))):
        if only_test and split == "train":
            continue
        arrays = []
        for name in (f"{name}{suffix}" for name in names):
            if name not in found:
                raise UserError(f"{path}: {name} is missing; download the data set again")
            try:
                arrays.append(reader(found.pop(name), cifar))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path}: {name} is damaged or not a file of this data set ({reason})") from None
        splits[split] = arrays[0] if len(arrays) == 1 else _concatenate(arrays)
    return splits


def _concatenate(arrays: list[LabelledImages]) -> LabelledImages:
    return np.concatenate([images for images, _ in arrays]), np.concatenate([labels for _, labels in arrays])


def _read_binary(content: bytes, cifar: CifarFormat) -> LabelledImages:
    """Read the binary version: label byte(s), then 3,072 pixels, channel by channel."""
    length = cifar.label_bytes + PIXELS
    if not content or len(content) % length:
        raise ValueError(f"{len(content)} bytes are not a multiple of {length}")
    table = np.frombuffer(content, np.uint8).reshape(-1, length)
    return table[:, cifar.label_bytes :].reshape(-1, *SHAPE), table[:, cifar.label_at].astype(np.int64)


def _read_pickle(content: bytes, cifar: CifarFormat) -> LabelledImages:
    """Read the Python version: a dictionary with `data` uint8 (n, 3072) and lists of labels."""
    table = _string_keys(archives.loads(content))
    pixels = np.asarray(table["data"])
    labels = np.asarray(table[cifar.pickled_labels], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS) or labels.ndim != 1 or not len(labels):
        raise ValueError(f"data are {pixels.dtype} {pixels.shape}, labels {labels.shape}")
    return pixels.reshape(-1, *SHAPE), labels


def _string_keys(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ValueError("it is not a dictionary")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in table.items()}


def _pickled_names(content: bytes | None, cifar: CifarFormat, path: Path) -> list[str] | None:
    if content is None:
        return None
    try:
        names = _string_keys(archives.loads(content))[cifar.pickled_names]
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {cifar.pickled_meta} is damaged or not a file of this data set ({reason})") from None


def _lines(content: bytes | None) -> list[str] | None:
    return None if content is None else [line for line in content.decode(errors="replace").split("\n") if line.strip()]


def _from_parquet(
    path: Path, cifar: CifarFormat, only_test: bool
) -> tuple[list[str] | None, dict[str, LabelledImages]]:
    files = split_files(path)
    wanted = ("test",) if only_test else ("train", "test")
    for split in wanted:
        if split not in files:
            raise UserError(f"{path}: has no Parquet files of the {split} images ({split}-….parquet)")
    tables = open_tables({split: files[split] for split in wanted}, None, cifar.column)
    names = next((names for names in tables[wanted[0]].names if names), None)
    splits = {}
    for split, table in tables.items():
        labels = np.array([_number(label, names, cifar, path) for label in table.labels()], dtype=np.int64)
        _check_labels(labels, cifar, path)  # before its images are decoded, which takes long
        decoded = decode_all(table.encoded(), len(labels), 3, None, "refuse", str(path))
        if decoded.images.shape[1:] != SHAPE:
            raise UserError(f"{path}: images of {decoded.images.shape[1:]} instead of {SHAPE}")
        splits[split] = decoded.images, labels
    return names, splits


def _check_labels(labels: Labels, cifar: CifarFormat, path: Path) -> None:
    if not len(labels) or not 0 <= labels.min() <= labels.max() < len(cifar.classes):
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no labels"
        raise UserError(f"{path}: has {found}: damaged, or not this data set, which has {len(cifar.classes)} classes")


def _number(label: int | str, names: list[str] | None, cifar: CifarFormat, path: Path) -> int:
    """Return the number of a label, which is a name if the file with it has names."""
    if isinstance(label, int):
        return label
    known = names or list(cifar.classes)
    if label not in known:
        raise UserError(f"{path}: {label!r} is no class of this data set; classes: {', '.join(known[:5])} …")
    return known.index(label)


CIFAR10_FILES = Published(
    "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10 = CifarFormat(
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
    """Read all images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    return read(locate(settings, CIFAR10_FILES), CIFAR10, settings)


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
CIFAR100 = CifarFormat(
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
CIFAR100_COARSE = dataclasses.replace(
    CIFAR100,
    pickled_names="coarse_label_names",
    pickled_labels="coarse_labels",
    text_names="coarse_label_names.txt",
    label_at=0,
    column="coarse_label",
    classes=tuple(COARSE_CLASSES.split()),
)


def read_cifar100(settings: Dataset) -> SourceData:
    """Read all images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    form = CIFAR100 if settings.labels == "fine" else CIFAR100_COARSE
    return read(locate(settings, CIFAR100_FILES), form, settings)
