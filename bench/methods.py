"""What a step of each method costs: resnet56 → resnet20, batches of 64 images of CIFAR-100's size, random numbers.

    python bench/methods.py [--threads N] [--turns N] [NAME …]

Time relative to scratch, in turns within one run, and the memory that a training adds to the process beside the images;
sums of methods too, and kd with a table that holds the teacher's outputs. All, or those that are named; of all a table
goes to results/methods.md. Blocks of `iakd` are kept with probability 1/2. Its two-path forms are also compared with
kd, whose loss they contain: each with one hybrid path of the kind in every step, or in a share 2(1 − p) of them.
"""

import argparse
import gc
import multiprocessing
import re
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import common
from contestants import BATCH, MEAN, STD, Contestant, ours, random_images, training
from iakd import devices, files
from iakd.config import METHODS, Compute, shortest_sum
from iakd.data.loader import Batch, BatchFormat, DeviceLoader
from iakd.training.trainer import Trainer

IMAGES = 50_000  # as CIFAR-100 has: some methods remember each
STEPS = 2  # of each turn
SUMS = ("iakd+kd", "crd+kd", "kcd+crd")
TWO_PATH: dict[str, dict[str, Any]] = {  # beside kd
    "two-path, T to S": {"paths": "teacher_to_student"},
    "two-path, S to T": {"paths": "student_to_teacher"},
    "two-path, bernoulli": {"paths": "bernoulli"},
    "two-path, any": {"paths": "any"},
    "two-path, any, 2 per step": {"paths": "any", "paths_per_step": 2},
    "two-path, any, seams": {"paths": "any", "seam_weight": 1.0},
    "two-path, any, separate": {"paths": "any", "student_bn": "separate"},
    "two-path, T to S, p 0.75": {"paths": "teacher_to_student", "p": 0.75},
    "two-path, S to T, p 0.75": {"paths": "student_to_teacher", "p": 0.75},
}
KNOWN = ", teacher known"  # its outputs are in the table
CACHED = {f"kd{KNOWN}": "fp32", f"kd, bf16{KNOWN}": "bf16"}
TABLE = common.ROOT / "bench" / "results" / "methods.md"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=common.cores())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    device = devices.set_up_device(Compute(threads=1))  # threads that wait would be lost in a fork
    data = DeviceLoader(*random_images(IMAGES), MEAN, STD, device)
    found: dict[str, dict[str, Any]] = {shortest_sum(name): {} for name in METHODS if name != "scratch"}
    found |= {name: {} for name in SUMS} | {"kd, bf16": {"expression": "kd", "precision": "bf16"}}
    for name, iakd in TWO_PATH.items():
        own = {key: value for key, value in iakd.items() if key != "p"}
        found[name] = {"expression": "iakd+kd", "iakd": {"form": "two_path", **own}, "p": iakd.get("p", 0.5)}
    for name, settings in found.items():
        settings.setdefault("expression", name)
        settings.setdefault("p", 0.5)
    chosen = {"scratch": {"expression": "scratch"}, **{name: found[name] for name in options.names or found}}
    memory = {name: peak_mib(device, {**settings, "images": data}) for name, settings in chosen.items()}
    torch.set_num_threads(options.threads)
    work = {name: steps(training(device=device, steps=1, images=data, **how)) for name, how in chosen.items()}
    with tempfile.TemporaryDirectory() as folder:
        if not options.names:
            for name, precision in CACHED.items():
                work[name] = ours("kd", device, STEPS, precision=precision, cache_dir=Path(folder))
        times = {name: 1 / faster(work, name, "scratch", options.turns) for name in work}
        numbers: dict[str, float] = {"threads": options.threads}
        for name in work:
            numbers[f"{key(name)}.vs_scratch"] = 1 / times[name]
            if name in memory:
                numbers[f"{key(name)}.peak_mib"] = memory[name]
            if name in TWO_PATH and "kd" in work:
                numbers[f"{key(name)}.vs_kd"] = faster(work, name, "kd", options.turns)
        if not options.names:
            known = {name: faster(work, name, name.removesuffix(KNOWN), options.turns) for name in CACHED}
            for name, ratio in known.items():
                numbers[f"{key(name)}.vs_{key(name.removesuffix(KNOWN))}"] = ratio
            files.write_text(TABLE, table(times, known, memory, options.threads))
    common.record("methods", numbers)


def faster(work: dict[str, Contestant], this: str, other: str, turns: int) -> float:
    """How many times as fast as `other` `this` is; in pairs, since others use the machine at the same time.

    One thread's time on the CPU is what the processor gave it: who else is at work matters less then.
    """
    if this == other:
        return 1.0
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    return common.ratio(common.turns({name: work[name] for name in (this, other)}, turns, clock), this, other)


def key(name: str) -> str:
    """How latest.json calls it."""
    return re.sub(r"[^\w+]+", "_", name)


def steps(made: Trainer) -> Contestant:
    """Some steps from the middle of a training on, where every method is past its beginnings; goes on every turn."""
    made.step = made.timeline.total // 2
    batches = forever(made)
    made.objective.train()

    def turn() -> int:
        for batch in islice(batches, STEPS):
            made.train_step(batch)
            made.step += 1
        return STEPS * BATCH

    return turn


def forever(made: Trainer) -> Iterator[Batch]:
    """A training's batches, epoch after epoch."""
    form = BatchFormat(BATCH, made.recipe.augment, made.channels_last)
    for epoch in count():
        wanted = made.objective.epoch_data(epoch, made.recipe.augment)
        yield from made.data.epoch(0, epoch, form, data=wanted)


def peak_mib(device: torch.device, settings: dict[str, Any]) -> float:
    """MiB that a training adds to the process at most: networks, optimiser, what the method remembers, activations."""
    if device.type == "cuda":
        return _on_gpu(device, settings)
    fork = multiprocessing.get_context("fork")  # a process that has nothing in memory but the images
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_in_child, args=(sender, device, settings))
    process.start()
    sender.close()  # then its end is seen, should it fail
    found = receiver.recv()
    process.join()
    return found


def _in_child(sender: Connection, device: torch.device, settings: dict[str, Any]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    steps(training(device=device, steps=1, **settings))()
    sender.send((_status("VmHWM") - before) / 2**10)


def _status(entry: str) -> float:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(entry))


def _on_gpu(device: torch.device, settings: dict[str, Any]) -> float:
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    steps(training(device=device, steps=1, **settings))()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def table(times: dict[str, float], known: dict[str, float], memory: dict[str, float], threads: int) -> str:
    """Markdown, the cheapest step first."""
    lines = [
        "# What a step of each method costs",
        "",
        f"resnet56 → resnet20, batches of {BATCH}, {IMAGES:,} random images of 3×32×32, threads: {threads}, on",
        f"{common.machine()}; commit {common.commit()}; `python bench/methods.py --threads {threads}`.",
        "",
        *(
            f"{name.removesuffix(KNOWN)} is {known[name]:.2f} times as fast with the teacher's outputs known."
            for name in known
        ),
        "",
        "| method | time of a step (scratch = 1) | memory, MiB | memory (scratch = 1) |",
        "|---|---|---|---|",
    ]
    for name, cost in sorted(times.items(), key=lambda item: item[1]):
        mib = memory.get(name)
        shown = ("", "") if mib is None else (f"{mib:.0f}", f"{mib / memory['scratch']:.2f}")
        lines.append(f"| {name} | {cost:.2f} | {shown[0]} | {shown[1]} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
