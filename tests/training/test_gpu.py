"""What holds on a CPU holds on a GPU, too. Skipped where there is none."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from walks import compare, walk

from iakd import config, devices, models
from iakd.config import METHODS, Compute, shortest_sum
from iakd.processes import Interrupt
from iakd.training.interleaved import fit_interleaved
from iakd.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]

OPTIONS: dict[str, dict[str, Any]] = {
    "crd": {"negatives": 20},
    "kcd": {"every": 1},
    "dkd": {"warmup_epochs": 2},
    "ctkd": {"epochs": 2},
    "reviewkd": {"warmup_epochs": 2},
    "mutual": {"turns": "steps", "peer_lr": 0.01},
}
TWO_PATH = {"iakd": {"form": "two_path", "paths": "teacher_to_student"}}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"expression": shortest_sum(name), "options": {name: OPTIONS[name]} if name in OPTIONS else {}}
        for name in METHODS
    },
    "two-path": {"expression": "iakd+kd", "options": TWO_PATH},
    "swaps per image": {"expression": "iakd", "options": {"iakd": {"granularity": "sample"}}},
    "swaps per channel": {"expression": "iakd", "options": {"iakd": {"granularity": "channel"}}},
    "adamw, average, mixed": {"optimizer": "adamw", "lr": 0.005, "ema": 0.9, "augment": {"mixup": {"alpha": 0.5}}},
    "all augmentation": {"augment": {"pad": 1, "flip": True, "policy": "randaugment", "cutout": 2}},
    "bf16": {"expression": "iakd+kd", "precision": "bf16"},
    "dropout": {"expression": "kd", "dropout": True},
}
RESUMED = ("scratch", "iakd", "two-path", "crd", "kcd", "mutual", "adamw, average, mixed", "bf16", "dropout")


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    """The GPU, in the deterministic mode that trainings use."""
    return devices.set_up_device(Compute(device="cuda"))


@pytest.fixture
def make(make_training: Make) -> Callable[..., Trainer]:
    """`make(case, engine, path)`: a training of CASES on the GPU."""

    def on_gpu(case: str, engine: str = "eager", path: str = "toy/students/run", **more: Any) -> Trainer:
        settings = {"lr": 0.01, "clip_norm": 5.0, **CASES[case], **more}
        dropout = settings.pop("dropout", False)
        training = make_training(path=path, device="cuda", compute={"engine": engine}, **settings)
        if dropout:
            training.objective.student.stem.append(nn.Dropout(0.3))  # type: ignore[operator]
        return training

    return on_gpu


def ends(training: Trainer, outcome: Any) -> tuple[Any, ...]:
    """All that a training leaves, without durations."""
    history, metrics = outcome
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history]
    return models.save_weights(training.objective.student), rows, metrics  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_a_training_repeats_bit_for_bit(make: Make, case: str) -> None:
    """In deterministic mode torch refuses an operation that could not."""
    one, other = make(case), make(case)
    assert ends(one, one.fit()) == ends(other, other.fit())


@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_agree_with_eager_ones(
    make: Make, case: str, caplog: pytest.LogCaptureFixture, record_property: Callable[[str, object], None]
) -> None:
    """The learning rate of a recorded step is a float32 number; nothing else differs."""
    eager, recorded = make(case, epochs=10), make(case, "graphs", epochs=10)
    losses, states = compare(walk(eager), walk(recorded))
    graphs = recorded.engine.graphs
    assert graphs is not None
    record_property("graphs", len(graphs._recorded))
    record_property("largest", (max(losses), max(states)))
    assert "cannot be recorded" not in caplog.text
    limit = 1e-2 if case == "bf16" else 1e-3
    assert max(losses[:10]) < limit and max(states[:10]) < limit, (losses, states)
    assert bool(graphs._recorded) == any(recorded.objective.graph_key(step) is not None for step in range(50))


@pytest.mark.parametrize("engine", ["eager", "graphs"])
@pytest.mark.parametrize("case", RESUMED)
def test_interrupted_equals_uninterrupted_bit_for_bit(make: Make, fit_until: FitUntil, case: str, engine: str) -> None:
    whole = make(case, engine, "toy/students/whole")
    wanted = ends(whole, whole.fit())
    fit_until(make(case, engine), 8)
    rest = make(case, engine)
    assert ends(rest, rest.fit()) == wanted


@pytest.mark.parametrize("engine", ["eager", "graphs"])
def test_together_equals_one_by_one(make: Make, engine: str) -> None:
    cases = ("iakd", "two-path", "dropout", "adamw, average, mixed", "crd")
    alone = [make(case, engine, f"alone/{case}") for case in cases]
    wanted = [ends(training, training.fit()) for training in alone]
    together = [make(case, engine, f"together/{case}") for case in cases]
    assert [ends(*pair) for pair in zip(together, fit_interleaved(together), strict=True)] == wanted


def test_a_step_that_cannot_be_recorded_does_no_harm(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither to the random numbers and the memory of later steps, nor to the graphs of other steps."""
    eager, failing = make("dropout"), make("dropout", "graphs")
    original = failing.objective.forward

    def forward(batch: Any, step: int) -> Any:
        terms, logits = original(batch, step)
        if len(batch.labels) == 16:
            terms["ce"].item()  # waits for the device, which a graph cannot
        return terms, logits

    monkeypatch.setattr(failing.objective, "forward", forward)
    losses, states = compare(walk(eager), walk(failing))
    assert "cannot be recorded" in caplog.text
    assert max(losses) < 1e-3 and max(states) < 1e-3


@pytest.mark.parametrize("case", ["scratch", "kd", "two-path"])
def test_the_gpu_computes_what_the_cpu_computes(make: Make, make_training: Make, case: str) -> None:
    """But for the sums of TensorFloat-32, which cuDNN's convolutions use."""
    gpu = make(case)
    cpu = make_training(lr=0.01, clip_norm=5.0, **CASES[case])
    first = [next(iter(walk_losses(training))) for training in (gpu, cpu)]
    assert first[0] == pytest.approx(first[1], rel=5e-3)


def walk_losses(training: Trainer) -> Any:
    for _ in training.steps(Interrupt()):
        yield training.sums.means()["loss"]


@pytest.mark.parametrize("arch", ["vgg8", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50", "resnet8x4"])
def test_every_family_trains_deterministically(arch: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32, device="cuda")
    labels = torch.arange(8, device="cuda")
    states = []
    for _ in range(2):
        network = models.build(config.Network(arch=arch), 3, 10)
        models.network.initialise(network, torch.Generator().manual_seed(0))
        network.to("cuda").train()
        for _ in range(2):
            torch.nn.functional.cross_entropy(network(images), labels).backward()
        states.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.equal(*states)


SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 200}
teachers: [{arch: resnet14}]
students: [{arch: resnet8}]
methods:
  kd: {}
  two-path: {method: iakd+kd, iakd: {form: two_path}}
  iakd-tuned: {method: iakd, iakd: {schedule: tuned}}
teach: {seeds: [0], recipe: &recipe {epochs: 3, batch_size: 64, lr: 0.05}}
tune: {trials: 3, seeds: 1, workers: 2, recipe: {epochs: 2}}
distill: {seeds: [0, 1], recipe: *recipe}
"""


@pytest.mark.parametrize("engine", ["eager", "graphs"])
def test_the_commands_run_on_the_gpu(tmp_path: Path, engine: str) -> None:
    settings = yaml.safe_load(SETTINGS) | {"compute": {"engine": engine}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def iakd(*arguments: str) -> str:
        command = [sys.executable, "-m", "iakd", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    iakd("prepare")
    iakd("teach")
    iakd("tune")
    for method in ("kd", "two-path", "iakd-tuned"):
        iakd("distill", "--method", method, "--seed", "0", "--seed", "1")
    iakd("evaluate")
    iakd("report")
    assert list(tmp_path.rglob("*.html"))
