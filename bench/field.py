"""How the field trains: loops written here after the manner of its benchmark repositories, and torchdistill itself.

PIL images transformed one by one in a DataLoader, networks in PyTorch's default memory layout, an optimiser with its
defaults, and numbers fetched from the device in every step.

    python bench/field.py LOOP THREADS STEPS

is such a loop on the CPU in a process of its own, for `apart`: it trains for a turn at every line that it reads.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from contestants import BATCH, LR, MEAN, STD, STUDENT, TEACHER, Contestant, network, random_images

WORKERS = 2


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory as torchvision's CIFAR100 keeps them, decoded and augmented one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images.transpose(0, 2, 3, 1).copy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Meter:
    """A running mean of numbers on the host."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, n: int) -> None:
        """Take in the mean of n numbers."""
        self.total += value * n
        self.count += n


def accuracy(logits: Tensor, labels: Tensor, ranks: tuple[int, ...] = (1, 5)) -> list[float]:
    """Percent of images whose class is among the first so many, for each of `ranks`."""
    predicted = logits.topk(max(ranks), 1).indices
    right = predicted.eq(labels.view(-1, 1))
    return [100.0 * right[:, :rank].any(1).float().mean().item() for rank in ranks]


def loop(device: torch.device, steps: int) -> Contestant:
    """Distillation of outputs (Hinton et al. 2015) as RepDistiller and its successors train."""
    data = Images(*random_images(steps * BATCH))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    student, teacher = network(STUDENT, device).train(), network(TEACHER, device).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def turn() -> int:
        losses, top1, top5, seconds = Meter(), Meter(), Meter(), Meter()
        for images, labels in loader:
            start = time.time()
            images, labels = images.to(device), labels.to(device)
            logits = student(images)
            with torch.no_grad():
                taught = teacher(images)
            soft, hard = F.log_softmax(logits / 4, 1), F.softmax(taught / 4, 1)
            divergence = F.kl_div(soft, hard, reduction="sum") * 16 / len(labels)
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * divergence
            first, fifth = accuracy(logits, labels)
            losses.update(loss.item(), len(labels))
            top1.update(first, len(labels))
            top5.update(fifth, len(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.update(time.time() - start, 1)
        return steps * BATCH

    return turn


def torchdistill(device: torch.device, steps: int) -> Contestant | None:
    """The same distillation by torchdistill, as its example for image classification drives it; None without it."""
    with suppress(ImportError):
        from torchdistill.core.forward_hook import ForwardHookManager  # noqa: F401 - is it there?

        return _torchdistill(device, steps)
    return None


def _torchdistill(device: torch.device, steps: int) -> Contestant:
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    kd = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": "."}
    kd |= {"teacher_module_io": "output", "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}
    settings = {
        "num_epochs": 240,
        "train_data_loader": {
            "dataset_id": "images",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }
    teacher, student = network(TEACHER, device).eval(), network(STUDENT, device)
    dataset = {"images": Images(*random_images(steps * BATCH))}
    box = get_distillation_box(teacher, student, dataset, settings, device, None, False, 1)

    def turn() -> int:
        logger = MetricLogger(delimiter="  ")
        logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        box.pre_epoch_process(epoch=0)
        for images, labels, extra in logger.log_every(box.train_data_loader, 1000, ""):
            start = time.time()
            images, labels = images.to(device), labels.to(device)
            loss = box.forward_process(images, labels, extra)
            box.post_forward_process(loss=loss)
            logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            logger.meters["img/s"].update(len(images) / (time.time() - start))
        return steps * BATCH

    return turn


LOOPS: dict[str, Callable[[torch.device, int], Contestant | None]] = {"loop": loop, "torchdistill": torchdistill}


def apart(name: str, threads: int, steps: int) -> Contestant | None:
    """One of LOOPS on the CPU, in a process with the C library's own ways of memory; None where there is none."""
    command = [sys.executable, __file__, name, str(threads), str(steps)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin and worker.stdout
    ask, answers = worker.stdin, worker.stdout
    if answers.readline() != "ready\n":
        return None

    def turn() -> int:
        print("turn", file=ask, flush=True)
        return int(answers.readline())

    return turn


def main() -> None:
    """Train for a turn whenever asked; ends with the process that asks."""
    name, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = LOOPS[name](torch.device("cpu"), steps)
    if work:
        print("ready", flush=True)
        for _ in sys.stdin:
            print(work(), flush=True)


if __name__ == "__main__":
    main()
