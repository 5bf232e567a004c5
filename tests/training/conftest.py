"""Small trainings on random images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iakd import config, models
from iakd.config import Compute, Recipe, Schedule, merged
from iakd.data.loader import DeviceLoader
from iakd.distillation.distiller import make_distiller
from iakd.distillation.registry import timeline_of
from iakd.experiment.run_dir import Run
from iakd.models.network import initialise
from iakd.training.trainer import OnValidation, Trainer

CLASSES = 4


def images(n: int, seed: int, device: str = "cpu") -> DeviceLoader:
    """Random images whose mean brightness in a quadrant tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    pixels = rng.integers(0, 120, (n, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 4 * (label // 2) :][:4, 4 * (label % 2) :][:, :4] += 100
    return DeviceLoader(pixels, labels, [0.25], [0.2], device)


def network(arch: str, seed: int) -> models.Network:
    net = models.build(config.Network(arch=arch, width=4), 1, CLASSES)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


@pytest.fixture
def make_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """`make_training(expression, recipe changes…)`: a training in the temporary folder, ready to fit.

    `networks`: student and teacher.
    """
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def make(
        expression: str = "scratch",
        path: str = "toy/students/run",
        schedule: Schedule | None = None,
        seed: int = 0,
        compute: dict[str, Any] | None = None,
        on_validation: OnValidation | None = None,
        n: int = 70,
        options: dict[str, Any] | None = None,
        networks: tuple[models.Network, models.Network] | None = None,
        device: str = "cpu",
        **recipe: Any,
    ) -> Trainer:
        settings = {"epochs": 4, "batch_size": 16, "lr": 0.05, "validate_every": 2, "augment": {"pad": 1}, **recipe}
        chosen = Recipe.model_validate(settings)
        options = options or {}
        if "iakd" in expression.split("+"):
            used = schedule or Schedule(p0=0.3, student_only=0.25)
            options = merged({"iakd": {"schedule": used.model_dump()}}, options)
        method = config.Method(method=expression, **options)
        student, teacher = (net.to(device) for net in networks or (network("resnet8", 1), network("resnet14", 2)))
        train = images(n, 1, device)
        timeline = timeline_of(chosen, method, len(train))
        distillation = make_distiller(
            student,
            teacher,
            method,
            timeline=timeline,
            seed=seed,
            data=train,
            label_smoothing=chosen.label_smoothing,
        )
        run = Run(path, "distill", "key", {}, seed, {}, {})
        machine = Compute.model_validate({"device": device, "checkpoint_seconds": 1e9, **(compute or {})})
        return Trainer(run, distillation, train, images(40, 2, device), chosen, machine, on_validation)

    return make
