"""How fast images are prepared and turned into training batches, against torchvision's data set and DataLoader.

    python bench/data.py

The images are random numbers in the publisher's form of CIFAR-100, so that nothing has to be downloaded.
"""

import itertools
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision import datasets, transforms
from torchvision.transforms.v2 import MixUp

import common
from iakd import config
from iakd.data.loader import BatchFormat, DeviceLoader
from iakd.data.sources.cifar import COARSE_CLASSES, FINE_CLASSES
from iakd.experiment.jobs import plan_experiment
from iakd.stages import prepare

TRAIN, TEST, BATCH = 50_000, 10_000, 64
REPETITIONS = 3
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class MadeUp(datasets.CIFAR100):
    """torchvision's reader of CIFAR-100, for files whose checksums are not the publisher's."""

    train_list = [["train", None]]  # noqa: RUF012
    test_list = [["test", None]]  # noqa: RUF012
    meta = {"filename": "meta", "key": "fine_label_names", "md5": None}  # noqa: RUF012


@dataclass(frozen=True)
class Recipe:
    """An augmentation in our words and in torchvision's."""

    ours: config.Augment
    theirs: list[Any]
    images: tuple[int, int]  # of ours and of theirs that are timed; a whole epoch would take too long
    collate: Callable[[Any], Any] = default_collate


USUAL = Recipe(  # of the field's recipes
    config.Augment(pad=4, flip=True),
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ],
    (25_600, 10_240),
)
STRONG = Recipe(  # the same with RandAugment, random erasing and mixup
    config.Augment(
        pad=4,
        flip=True,
        policy="randaugment",
        erase=config.Erase(probability=0.25),
        mixup=config.Mix(alpha=0.2),
    ),
    [*USUAL.theirs[:2], transforms.RandAugment(2, 9), *USUAL.theirs[2:], transforms.RandomErasing(0.25)],
    (12_800, 2_560),
    lambda images: MixUp(alpha=0.2, num_classes=100)(*default_collate(images)),
)


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_cifar100(Path("cifar-100-python"))
        numbers = measure_prepare() | measure_batches(USUAL)
        numbers |= {f"strong.{name}": value for name, value in measure_batches(STRONG).items()}
    common.record("data", numbers)


def write_cifar100(folder: Path) -> None:
    """Random images and labels as the publisher pickles them."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for name, n in (("train", TRAIN), ("test", TEST)):
        table = {
            "data": random.integers(0, 256, (n, 3072), dtype=np.uint8),
            "fine_labels": (np.arange(n) % 100).tolist(),
            "coarse_labels": (np.arange(n) % 20).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(table))
    names = {"fine_label_names": FINE_CLASSES.split(), "coarse_label_names": COARSE_CLASSES.split()}
    (folder / "meta").write_bytes(pickle.dumps(names))


def measure_prepare() -> dict[str, float]:
    """Images per second from the publisher's files to the store, and to torchvision's data set, which only reads."""

    def ours() -> int:
        Path("results/cifar100/data/manifest.json").unlink(missing_ok=True)
        network = config.Teacher(arch="resnet8")
        dataset = config.Dataset(source="cifar100", name="cifar100", path=".", val=0.1)
        everything = config.Params(dataset=dataset, teachers=[network], students=[network], methods={"kd": {}})
        prepare.run(plan_experiment(everything))
        return TRAIN + TEST

    def theirs() -> int:
        return len(MadeUp(".", train=True)) + len(MadeUp(".", train=False))

    found = common.rates({"ours": ours, "theirs": theirs}, 3)
    return {"prepare_images_per_s": found["ours"], "torchvision_read_images_per_s": found["theirs"]}


def measure_batches(recipe: Recipe) -> dict[str, float]:
    """Images per second of the training batches: ours on one thread and on all cores, theirs in and beside the process.

    Each side is judged by its best.
    """
    ours = resident(recipe)
    contestants = {f"resident_{threads}_threads": partial(ours, threads) for threads in sorted({1, common.cores()})}
    theirs = {f"dataloader_{workers}_workers": dataloader(recipe, workers) for workers in (0, 2)}
    found = common.rates(contestants | theirs, REPETITIONS)
    best = [max(found[name] for name in names) for names in (contestants, theirs)]
    return {f"{name}_images_per_s": rate for name, rate in found.items()} | {"vs_dataloader": best[0] / best[1]}


def resident(recipe: Recipe) -> Callable[[int], int]:
    """An epoch of ours, on so many threads."""
    table = MadeUp(".")
    images = table.data.transpose(0, 3, 1, 2)
    data = DeviceLoader(images, np.array(table.targets), MEAN, STD, "cuda" if torch.cuda.is_available() else "cpu")

    def epoch(threads: int) -> int:
        torch.set_num_threads(threads)
        batches = itertools.islice(data.epoch(0, 0, BatchFormat(BATCH, recipe.ours)), recipe.images[0] // BATCH)
        return sum(len(batch.labels) for batch in batches)

    return epoch


def dataloader(recipe: Recipe, workers: int) -> Callable[[], int]:
    """An epoch of torchvision's; workers live on between epochs."""
    images = Subset(MadeUp(".", transform=transforms.Compose(recipe.theirs)), range(recipe.images[1]))
    loader = DataLoader(
        images,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=recipe.collate,
    )

    def epoch() -> int:
        torch.set_num_threads(1)
        return sum(len(labels) for _, labels in loader)

    return epoch


if __name__ == "__main__":
    main()
