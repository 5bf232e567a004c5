"""Whether training in bf16 costs accuracy: short trainings on CIFAR-100, each seed in fp32 and in bf16.

    python bench/precision.py --data FOLDER [--out FILE]

FOLDER is CIFAR-100 in any form that `iakd prepare` reads. A resnet8 learns a fifth of the training images; accuracy is
that on 5,000 others of them, never on the test set. Under six minutes on one core that computes in bf16.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import common
from iakd import config, devices, files
from iakd.data.file_loader import make_loader
from iakd.data.store import PreparedData
from iakd.distillation.assembly import read_teacher
from iakd.experiment.jobs import plan_experiment
from iakd.reporting import statistics
from iakd.stages import prepare, teach
from iakd.training.validation import predict

SEEDS = range(5)
SETTINGS = {
    "teachers": [{"arch": "resnet8"}],
    "students": [{"arch": "resnet8"}],
    "methods": {"scratch": {}},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu", "threads": 1},
}
RECIPE = {
    "epochs": 5,
    "batch_size": 64,
    "lr": 0.1,
    "lr_schedule": {"kind": "onecycle", "warmup": 0.2},
    "augment": {"pad": 4, "flip": True},
    "validate_every": 5,
}


def main() -> None:
    """Train, compare, and write one file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out and options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = {precision: train(data, precision) for precision in ("fp32", "bf16")}
        os.chdir(common.ROOT)
    bf16, fp32 = (dict(zip(SEEDS, found[name].pop("correct"), strict=True)) for name in ("bf16", "fp32"))
    difference = statistics.paired_difference(bf16, fp32, 0.95)
    results = {**found, "bf16_minus_fp32": dataclasses.asdict(difference) if difference else None}
    print(json.dumps(results, indent=2))
    if out:
        about = {"machine": common.machine(), "commit": common.commit()}
        command = f"python bench/precision.py --data CIFAR-100 --out {out.relative_to(common.ROOT)}"
        files.write_json(out, {**about, "command": command, "seeds": list(SEEDS), "results": results})


def train(data: Path, precision: str) -> dict[str, Any]:
    """Validation accuracy of every seed, in percent, which images it is right on, and the time that all took."""
    dataset = {"name": "cifar100", "source": "cifar100", "path": str(data), "val": 5000, "train_fraction": 0.2}
    teach_all = {"seeds": list(SEEDS), "recipe": {**RECIPE, "precision": precision}}
    experiment = plan_experiment(config.parse({**SETTINGS, "dataset": dataset, "teach": teach_all}, "bench"))
    prepare.run(experiment)
    start = time.process_time()
    for job in experiment.teachers:
        teach.run(experiment, job)
    seconds = time.process_time() - start
    store, device = PreparedData.open(experiment.data.folder), devices.set_up_device(experiment.params.compute)
    correct = []
    for job in experiment.teachers:
        logits, labels = predict(read_teacher(job, store).to(device), make_loader(store, "val", device), 500)
        correct.append((logits.argmax(1) == labels).cpu().numpy())
    top1 = [100 * float(np.mean(right)) for right in correct]
    means = dataclasses.asdict(statistics.seed_mean(top1))
    return {"correct": correct, "val_top1": top1, **means, "cpu_seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
