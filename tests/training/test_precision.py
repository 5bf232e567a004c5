"""Training in bf16 reaches what training in fp32 reaches."""

import statistics
from pathlib import Path

import pytest
import torch

from iakd import models, params
from iakd.data.batches import Resident
from iakd.data.sources import digits
from iakd.methods import Distillation, timeline_of
from iakd.models.network import initialise
from iakd.runs import Run
from iakd.training.loop import Training


def accuracy(precision: str, seed: int) -> float:
    """Percent of 500 digits named right after a short training on 400 others."""
    raw = digits.read(params.Dataset())
    train, test = (
        Resident(raw.train_images[part], raw.train_labels[part], [0.305], [0.376], "cpu")
        for part in (slice(0, 400), slice(400, 900))
    )
    recipe = params.Recipe.model_validate(
        {"epochs": 8, "batch_size": 40, "lr": 0.1, "lr_schedule": {"kind": "onecycle", "warmup": 0.2}}
        | {"precision": precision}
    )
    network = models.build(params.Network(arch="resnet8", width=8), 1, 10)
    initialise(network, torch.Generator().manual_seed(seed))
    method = params.Method(method="scratch")
    timeline = timeline_of(recipe, method, len(train))
    alone = Distillation(network, None, method, None, timeline, seed, train)
    machine = params.Compute(device="cpu", checkpoint_seconds=1e9)
    run = Run(f"digits/{precision}/{seed}", "distill", "key", {}, seed, {}, {})
    return float(Training(run, network, alone, train, test, recipe, machine).fit()[1]["val_top1"])


def test_bf16_is_as_accurate_as_fp32_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    fp32, bf16 = ([accuracy(precision, seed) for seed in range(3)] for precision in ("fp32", "bf16"))
    assert statistics.mean(fp32) > 80
    noise = max(statistics.stdev(fp32), statistics.stdev(bf16), 0.5)
    assert abs(statistics.mean(bf16) - statistics.mean(fp32)) < 2 * noise, (fp32, bf16)
