"""How fast images are prepared and turned into training batches, against torchvision's data set and DataLoader.

    python bench/data.py

The images are random numbers in the publisher's form of CIFAR-100, so that nothing has to be downloaded.
"""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import common
from iakd import params
from iakd.data.batches import Resident
from iakd.data.sources.cifar100 import COARSE_CLASSES, FINE_CLASSES
from iakd.plan import make_plan
from iakd.stages import prepare

TRAIN, TEST, BATCH = 50_000, 10_000, 64
THEIR_IMAGES = 10_000  # of an epoch that is timed; ours is a whole one, theirs would take too long
REPETITIONS = 5
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class MadeUp(datasets.CIFAR100):
    """torchvision's reader of CIFAR-100, for files whose checksums are not the publisher's."""

    train_list = [["train", None]]  # noqa: RUF012
    test_list = [["test", None]]  # noqa: RUF012
    meta = {"filename": "meta", "key": "fine_label_names", "md5": None}  # noqa: RUF012


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(common.cores())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_cifar100(Path("cifar-100-python"))
        numbers = measure_prepare() | measure_batches()
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
        network = params.Network(arch="resnet8")
        dataset = params.Dataset(source="cifar100", name="cifar100", path=".", val=0.1)
        everything = params.Params(dataset=dataset, teachers=[network], students=[network], methods={"kd": {}})
        prepare.run(make_plan(everything))
        return TRAIN + TEST

    def theirs() -> int:
        return len(MadeUp(".", train=True)) + len(MadeUp(".", train=False))

    found = common.rates({"ours": ours, "theirs": theirs}, 3)
    return {"prepare_images_per_s": found["ours"], "torchvision_read_images_per_s": found["theirs"]}


def measure_batches() -> dict[str, float]:
    """Images per second of the training batches."""
    found = common.rates({"ours": resident(params.Augment(pad=4, flip=True)), **dataloaders(usual())}, REPETITIONS)
    best = max(found["0 workers"], found["2 workers"])
    return {
        "resident_images_per_s": found["ours"],
        "dataloader_0_workers_images_per_s": found["0 workers"],
        "dataloader_2_workers_images_per_s": found["2 workers"],
        "vs_dataloader": found["ours"] / best,
    }


def resident(augment: params.Augment) -> Callable[[], int]:
    """An epoch of ours."""
    table = MadeUp(".")
    images = table.data.transpose(0, 3, 1, 2)
    data = Resident(images, np.array(table.targets), MEAN, STD, "cuda" if torch.cuda.is_available() else "cpu")
    return lambda: sum(len(batch.labels) for batch in data.epoch(0, 0, BATCH, augment))


def usual() -> transforms.Compose:
    """Padded crop and flip, as the field's recipes have them."""
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def dataloaders(transform: transforms.Compose) -> dict[str, Callable[[], int]]:
    """Epochs of torchvision's, with and without workers, which live on between epochs."""
    table = Subset(MadeUp(".", transform=transform), range(THEIR_IMAGES))

    def epoch(workers: int) -> Callable[[], int]:
        loader = DataLoader(
            table, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        return lambda: sum(len(labels) for _, labels in loader)

    return {f"{workers} workers": epoch(workers) for workers in (0, 2)}


if __name__ == "__main__":
    main()
