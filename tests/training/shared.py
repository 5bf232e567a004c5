"""Small trainings, run by one process or shared by several, and what they leave.

As a program (`python shared.py FILE CASE…`), one of several processes; the main one writes the outcomes.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from iakd import config, models
from iakd.config import METHODS, Compute, Recipe, merged, shortest_sum
from iakd.data.loader import DeviceLoader
from iakd.distillation.distiller import make_distiller, weights_of
from iakd.distillation.registry import timeline_of
from iakd.distillation.warm_start import add_warm_start
from iakd.experiment.run_dir import Run
from iakd.models.network import initialise
from iakd.processes import Interrupt
from iakd.training.distributed import SINGLE_PROCESS, TrainingProcesses, join_processes
from iakd.training.trainer import Trainer, TrainingResult

CLASSES = 4
PLAIN = {"arch": "resnet8", "width": 4}
DEEP = {"arch": "resnet14", "width": 4}


@dataclass(frozen=True)
class Case:
    """A training: its settings where they are not the common ones, and the step after which it stops, to be resumed."""

    method: str
    recipe: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=lambda: PLAIN)
    teacher: dict[str, Any] = field(default_factory=lambda: DEEP)
    images: int = 15  # batches of 8 and 7 images
    size: int = 8
    p0: float = 0.4
    stop: int | None = None


def images(n: int, size: int, seed: int, kind: type[DeviceLoader] = DeviceLoader) -> DeviceLoader:
    """Random images whose brightest quadrant tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    pixels = rng.integers(0, 120, (n, 1, size, size), dtype=np.uint8)
    half = size // 2
    for image, label in zip(pixels, labels, strict=True):
        image[0, half * (label // 2) :][:half, half * (label % 2) :][:, :half] += 100
    return kind(pixels, labels, [0.25], [0.2], "cpu")


def network(described: dict[str, Any], seed: int) -> models.Network:
    net = models.build(config.Network(**described), 1, CLASSES)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


def make(case: Case, path: str, processes: TrainingProcesses) -> Trainer:
    settings = {"epochs": 2, "batch_size": 8, "lr": 0.02, "validate_every": 2, "augment": {"pad": 1}, **case.recipe}
    recipe = Recipe.model_validate(settings)
    options = case.options
    if "iakd" in case.method.split("+"):
        options = merged({"iakd": {"schedule": {"p0": case.p0, "student_only": 0.2}}}, options)
    method = config.Method(method=case.method, **options)
    train = images(case.images, case.size, 1)
    timeline = timeline_of(recipe, method, len(train))
    student, teacher = network(case.student, 1), network(case.teacher, 2)
    distillation = make_distiller(
        student,
        teacher,
        method,
        timeline=timeline,
        seed=0,
        data=train,
        label_smoothing=recipe.label_smoothing,
        class_weights=weights_of(recipe, train, [str(label) for label in range(CLASSES)]),
        cache_dir=None,
        processes=processes.count,
    )
    machine = Compute.model_validate({"device": "cpu", "checkpoint_seconds": 1e9})
    run = Run(path, "distill", "key", {}, 0, {}, {})
    validation = images(11, case.size, 2)
    training = Trainer(run, distillation, train, validation, recipe, machine, processes=processes)
    if method.init == "blockwise":
        add_warm_start(training, method.blockwise, machine)
    return training


def watch(training: Trainer, moved: list[list[str]], stop: int | None) -> TrainingResult:
    """Train; note after each step which parameters it moved. SIGTERM comes after step `stop`."""
    student = training.objective.student
    before = {name: value.clone() for name, value in student.named_parameters()}
    with Interrupt() as interrupt:
        steps = training.steps(interrupt)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            moved.append([name for name, value in student.named_parameters() if not torch.equal(value, before[name])])
            before = {name: value.clone() for name, value in student.named_parameters()}
            if training.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)


def outcome(case: Case, path: str, processes: TrainingProcesses = SINGLE_PROCESS) -> dict[str, Any]:
    """State, history and metrics after the whole training, and the parameters that moved in each step until a stop."""
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    training = make(case, path, processes)
    moved: list[list[str]] = []
    stop = case.stop if processes.shard.rank == processes.count - 1 else None  # one gets the signal; all have to stop
    try:
        history, metrics = watch(training, moved, stop)
    except KeyboardInterrupt:
        stopped = training.step
        training = make(case, path, processes)
        history, metrics = training.fit()
        metrics["stopped"] = stopped
    assert not any(hasattr(layer, "sync") for layer in training.objective.student.modules())
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history]
    return {
        "objective": training.objective.state_dict(),
        "history": rows,
        "metrics": metrics,
        "moved": moved,
    }


OPTIONS: dict[str, dict[str, Any]] = {  # of methods, for so few images
    "crd": {"negatives": 8, "temperature": 0.2},
    "kcd": {"every": 1, "drop": 0.2, "keep": 0.3},
    "hints": {"points": 2, "images": 16},
}
EASED = {"clip_norm": 1.0}  # weights made for larger batches let rounding grow


def _method(name: str) -> Case:
    options = {name: OPTIONS[name]} if name in OPTIONS else {}
    return Case(shortest_sum(name), EASED, options)


CASES = {
    **{name: _method(name) for name in METHODS},
    "iakd+kd": Case("iakd+kd", {"clip_norm": 0.5, "ema": 0.9}),
    "class weights": Case("iakd+kd", {"class_weights": "balanced", "label_smoothing": 0.1}),
    "balanced sampler": Case("kd", {"sampler": "balanced"}),
    "adamw": Case("iakd+kd", {"optimizer": "adamw", "lr": 0.002}),
    "mixed": Case("kd", {"augment": {"pad": 1, "mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0}}}),
    "two-path": Case("iakd+sp+dist", EASED, {"iakd": {"form": "two_path", "seam_weight": 0.02, "warmup": 0.0}}),
    "separate": Case("iakd+kd", EASED, {"iakd": {"form": "two_path", "student_bn": "separate", "paths_per_step": 2}}),
    "sample": Case("iakd", options={"iakd": {"granularity": "sample"}}, p0=0.2),
    "channel": Case("iakd", options={"iakd": {"granularity": "channel"}}),
    "statistics": Case("iakd", options={"iakd": {"teacher_bn": "batch", "bn_reestimate": True}}),
    "bits": Case("iakd+kd", student={**PLAIN, "bits": 4}),
    "bit-widths": Case("iakd+kd", student={**PLAIN, "bits": [2, 4]}),
    "entry": Case("reviewkd", EASED, student={"arch": "wrn_16_1"}, teacher={"arch": "wrn_16_2"}),
    "mobilenet": Case("kd", {"epochs": 1, "batch_size": 15, "lr": 0.001}, student={"arch": "MobileNetV2"}, size=32),
    "sizes": Case("iakd", student={"arch": "resnet8x4"}, teacher={"arch": "ResNet50", "width": 4}, size=32),
    "blockwise": Case("iakd+kd", options={"init": "blockwise", "blockwise": {"epochs": 2}}),
    "blockwise, adapted": Case("kd", options={"init": "blockwise"}, student={"arch": "resnet8", "width": 2}),
    "few": Case("iakd+kd", images=10),  # the last batch has fewer images than there may be processes
    "distribution": Case("ot", EASED, {"ot": {"sets": "images", "weight": 1.0}}),
    "turns": Case("mutual+label_smoothing", EASED, {"mutual": {"turns": "steps", "peer_lr": 0.002}}),
    "stopped": Case("iakd+kd+dist", {"ema": 0.9}, stop=1),
    "whole": Case("iakd+kd+dist", {"ema": 0.9}),
    "stopped sample": Case("iakd", {"epochs": 3}, {"iakd": {"granularity": "sample"}}, stop=4),
    "whole sample": Case("iakd", {"epochs": 3}, {"iakd": {"granularity": "sample"}}),
}


def main(file: str, *names: str) -> None:
    """Be one of several processes."""
    torch.set_num_threads(1)
    with join_processes() as processes:
        outcomes = {name: outcome(CASES[name], f"shared/{name}", processes) for name in names}
        if processes.is_main:
            torch.save(outcomes, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
