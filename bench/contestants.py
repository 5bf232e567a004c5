"""What train.py and gpu.py let run against each other: our training loop, and the floor below it.

All train the same networks on random images. A contestant trains for a turn and returns the number of images.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iakd import config, models
from iakd.data.loader import DeviceLoader, steps_per_epoch
from iakd.distillation.distiller import make_distiller
from iakd.distillation.teacher_cache import CacheDir
from iakd.experiment.run_dir import Run
from iakd.models.network import initialise
from iakd.processes import Interrupt
from iakd.training.interleaved import in_turn
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

STUDENT, TEACHER, CLASSES, BATCH = "resnet20", "resnet56", 100, 64
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
WARM, TURNS = 2, 5  # epochs of trainings side by side: to record their steps, and to be measured
LR = 1e-3  # low: random labels teach nothing, and the numbers shall stay finite

Contestant = Callable[[], int]


def random_images(n: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 3, side, side) and labels (n,)."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (n, 3, side, side), dtype=np.uint8), random.integers(0, CLASSES, n)


def network(arch: str, device: torch.device | str) -> models.Network:
    """A network of CIFAR-100's size with random weights."""
    built = models.build(config.Network(arch=arch), 3, CLASSES)
    initialise(built, torch.Generator().manual_seed(0))
    return built.to(device)


def training(
    expression: str,
    device: torch.device,
    steps: int,
    p: float = 1.0,
    precision: str = "fp32",
    pair: tuple[str, str] = (TEACHER, STUDENT),
    side: int = 32,
    cache_dir: Path | None = None,
    images: tuple[np.ndarray, np.ndarray] | DeviceLoader | None = None,
    iakd: dict[str, Any] | None = None,
    **compute: Any,
) -> Trainer:
    """Ours, by method, with epochs of so many steps; `p` is the chance that a student's block is kept.

    `cache_dir`: a folder for the teacher's outputs. `iakd`: more of its options.
    """
    recipe = config.Recipe.model_validate(
        {"batch_size": BATCH, "lr": LR, "precision": precision, "augment": {"pad": 4, "flip": True}}
        | {"validate_every": 240}
    )
    schedule = config.Schedule(kind="uniform", p0=p, student_only=0.0)
    swaps = "iakd" in expression.split("+")
    method = config.Method(method=expression, **({"iakd": {"schedule": schedule, **(iakd or {})}} if swaps else {}))
    if not isinstance(images, DeviceLoader):
        images = DeviceLoader(*(images or random_images(steps * BATCH, side)), MEAN, STD, device)
    data = images
    timeline = Timeline.of(recipe, steps_per_epoch(len(data), BATCH))
    teacher = network(pair[0], device) if method.needs_teacher else None
    student = network(pair[1], device)
    kept = CacheDir(cache_dir, "random", recipe.augment, 2**33) if cache_dir else None
    distillation = make_distiller(student, teacher, method, timeline=timeline, seed=0, data=data, cache_dir=kept)
    run = Run("bench", "distill", "key", {}, 0, {}, {})
    machine = config.Compute.model_validate({"device": device.type, "checkpoint_seconds": 1e9, **compute})
    return Trainer(run, distillation, data, data, recipe, machine)


def epoch(made: Trainer) -> None:
    """Train to the end of the epoch."""
    for _ in made.epoch(Interrupt()):
        pass


def ours(expression: str, device: torch.device, steps: int, **settings: Any) -> Contestant:
    """An epoch of the product's loop: augmentation, sums for the history and a row of it included."""
    made = training(expression, device, steps, **settings)

    def turn() -> int:
        if settings.get("cache_dir"):
            made.step = 0  # the same epoch again, so that all of the teacher's outputs are there
        epoch(made)
        return steps * BATCH

    return turn


def side_by_side(
    expression: str, device: torch.device, steps: int, count: int, ready: Callable[[], None], **settings: Any
) -> float:
    """Images per second of so many trainings in one process, which take their steps in turn; `ready` when all are warm.

    They see the same images, which are there once.
    """
    images = DeviceLoader(*random_images(steps * BATCH), MEAN, STD, device)
    trainings = [training(expression, device, steps, images=images, **settings) for _ in range(count)]
    start = 0.0

    def work(made: Trainer, last: bool) -> Iterator[None]:
        nonlocal start
        for turn in range(-WARM, TURNS):
            if turn == 0 and last:
                ready()
                synchronise(device)
                start = time.perf_counter()
            yield from made.epoch(Interrupt())

    in_turn([work(made, made is trainings[-1]) for made in trainings], device, Interrupt())
    return count * TURNS * steps * BATCH / (time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Wait for all that the device has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor(
    distil: bool,
    device: torch.device,
    steps: int,
    precision: str = "fp32",
    channels_last: bool = True,
    teacher_known: bool = False,
) -> Contestant:
    """Forward, loss, backward and a fused optimiser on batches that lie ready on the device; nothing else.

    `teacher_known`: its outputs lie ready, too.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student = network(STUDENT, device).train().to(memory_format=layout)
    teacher = network(TEACHER, device).eval().requires_grad_(False).to(memory_format=layout)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, fused=True)
    batches = [torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=layout) for _ in range(steps)]
    labels = [torch.randint(CLASSES, (BATCH,), device=device) for _ in range(steps)]
    with torch.no_grad():
        known = [teacher(images) for images in batches] if teacher_known else [None] * steps

    def loss(images: Tensor, truth: Tensor, taught: Tensor | None) -> Tensor:
        logits = student(images)
        if not distil:
            return F.cross_entropy(logits.float(), truth)
        if taught is None:
            with torch.no_grad():
                taught = teacher(images)
        soft, hard = (F.log_softmax(values.float() / 4, 1) for values in (logits, taught))
        divergence = F.kl_div(soft, hard, log_target=True, reduction="batchmean")
        return 0.1 * F.cross_entropy(logits.float(), truth) + 0.9 * 16 * divergence

    def turn() -> int:
        for batch in zip(batches, labels, known, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(*batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        return steps * BATCH

    return turn
