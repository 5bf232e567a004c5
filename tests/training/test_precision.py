"""Training in bf16 multiplies in bf16 and does everything else in fp32, and reaches what training in fp32 reaches."""

import statistics
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from walks import compare, walk

from iakd import config, models
from iakd.data.loader import Batch, DeviceLoader
from iakd.data.sources import digits
from iakd.distillation.distiller import make_distiller
from iakd.distillation.registry import timeline_of
from iakd.experiment.run_dir import Run
from iakd.models.network import initialise
from iakd.training.trainer import LossTerms, Trainer

SEEDS = range(5)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def training(precision: str, seed: int) -> Trainer:
    """A short one on 400 digits, validated on 500 others."""
    raw = digits.read(config.Dataset())
    train, test = (
        DeviceLoader(raw.train_images[part], raw.train_labels[part], [0.305], [0.376], "cpu")
        for part in (slice(0, 400), slice(400, 900))
    )
    recipe = config.Recipe.model_validate(
        {"epochs": 8, "batch_size": 40, "lr": 0.1, "lr_schedule": {"kind": "onecycle", "warmup": 0.2}}
        | {"precision": precision}
    )
    network = models.build(config.Network(arch="resnet8", width=8), 1, 10)
    initialise(network, torch.Generator().manual_seed(seed))
    method = config.Method(method="scratch")
    timeline = timeline_of(recipe, method, len(train))
    distillation = make_distiller(network, None, method, timeline=timeline, seed=seed, data=train)
    machine = config.Compute(device="cpu", checkpoint_seconds=1e9)
    run = Run(f"digits/{precision}/{seed}", "distill", "key", {}, seed, {}, {})
    return Trainer(run, distillation, train, test, recipe, machine)


def test_bf16_is_as_accurate_as_fp32_on_digits() -> None:
    """A seed's accuracy scatters by one point, so the difference of two means by 0.6; three times that is refused."""
    fp32, bf16 = (
        [float(training(precision, seed).fit()[1]["val_top1"]) for seed in SEEDS] for precision in ("fp32", "bf16")
    )
    assert statistics.mean(fp32) > 80
    assert fp32 != bf16
    assert abs(statistics.mean(bf16) - statistics.mean(fp32)) < 2, (fp32, bf16)


def test_bf16_begins_as_fp32_does() -> None:
    """Ten steps later rounding has taken them apart: a bf16 number has two to three decimal digits."""
    losses, states = compare(walk(training("fp32", 0)), walk(training("bf16", 0)))
    assert 0 < max(losses[:10]) < 5e-3, losses
    assert 0 < max(states[:10]) < 3e-2, states


def test_only_products_are_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and what the optimiser remembers take more digits than bf16 has: small updates are not lost."""
    made = training("bf16", 0)
    products: set[torch.dtype] = set()

    def note(layer: nn.Module, arguments: object, outcome: Tensor) -> None:
        if layer.training:
            products.add(outcome.dtype)

    for layer in made.objective.student.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    original, terms = made.objective.forward, []

    def loss(batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        outcome = original(batch, step)
        terms.extend(outcome[0].values())
        return outcome

    monkeypatch.setattr(made.objective, "forward", loss)
    made.fit()
    assert products == {torch.bfloat16}
    assert {term.dtype for term in terms} == {torch.float32}
    momenta = [made.optimizer.state[parameter]["momentum_buffer"] for parameter in made.objective.student.parameters()]
    for tensor in (*made.objective.student.parameters(), *momenta):
        assert tensor.dtype == torch.float32
        assert (tensor != tensor.bfloat16().float()).float().mean() > 0.5
