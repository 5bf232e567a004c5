"""How fast a training is: resnet56 → resnet20, batches of 64 images of CIFAR-100's size, random numbers as images.

    python bench/train.py [--threads N] [--turns N]

In one run, taking turns: the floor (the same networks, batches that lie ready, a fused optimiser, nothing else), ours
(the product's loop), and the field's. `python -m pip install torchdistill` beside the lock adds torchdistill's.
`vs_limit` is the share of the rate that bench/limit.py takes for the hardware's.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

import common
import contestants
import field
import limit
from contestants import BATCH, Contestant, floor, ours
from iakd import devices
from iakd.config import Compute
from iakd.data.loader import BatchFormat
from iakd.training.trainer import VALIDATION_BATCH
from iakd.training.validation import predict

STEPS = 4  # of each turn
LONG, PARTS = 5000, 20  # steps of the training whose cost per step and memory must not grow; measured 20 times
IMAGES = 50_000  # of CIFAR-100


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=common.cores())
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    devices.set_up_device(Compute(device="cpu", threads=options.threads))
    torch.manual_seed(0)
    alone = {"threads": options.threads, "peak_gib": peak(), **steady()}
    with tempfile.TemporaryDirectory() as folder:
        measured = common.turns(loops(options.threads, Path(folder)), options.turns)
    if "torchdistill_kd" not in measured:
        print("torchdistill is left out: it is not installed", file=sys.stderr)
    numbers = ratios(measured)
    numbers["train"] |= alone
    numbers["images_per_s"] = {name: statistics.median(values) for name, values in measured.items()}
    numbers["limit"] = limits(torch.device("cpu"))
    for section, name, bound in (
        ("train", "scratch", "scratch"),
        ("kd_live", "kd", "kd"),
        ("kd_bf16", "kd_bf16", "kd_bf16"),
        ("kd_cached_bf16", "kd_cached_bf16", "kd_bf16_teacher_known"),
    ):
        numbers[section]["vs_limit"] = numbers["images_per_s"][name] / numbers["limit"][f"{bound}_images_per_s"]
    for name, values in numbers.items():
        common.record(name, values)


def loops(threads: int, folder: Path) -> dict[str, Contestant]:
    """All contestants; the field's in processes of their own, so that they have nothing of our settings."""
    device = torch.device("cpu")
    found: dict[str, Contestant | None] = {
        "floor_scratch": floor(False, device, STEPS),
        "scratch": ours("scratch", device, STEPS),
        "floor_kd": floor(True, device, STEPS),
        "kd": ours("kd", device, STEPS),
        **{f"iakd_p{100 * p:.0f}": ours("iakd", device, STEPS, p=p) for p in (0.25, 0.5, 0.75)},
        "kd_bf16": ours("kd", device, STEPS, precision="bf16"),
        "floor_kd_bf16": floor(True, device, STEPS, precision="bf16"),
        "kd_cached": ours("kd", device, STEPS, cache_dir=folder / "fp32"),
        "kd_cached_bf16": ours("kd", device, STEPS, precision="bf16", cache_dir=folder / "bf16"),
        "floor_kd_bf16_teacher_known": floor(True, device, STEPS, precision="bf16", teacher_known=True),
        "field_kd": field.apart("loop", threads, STEPS),
        "torchdistill_kd": field.apart("torchdistill", threads, STEPS),
    }
    return {name: work for name, work in found.items() if work}


def limits(device: torch.device) -> dict[str, float]:
    """Images per second at the hardware's limit, of what the floor computes."""
    found = {}
    for name, distil, precision, known in (
        ("scratch", False, "fp32", False),
        ("kd", True, "fp32", False),
        ("kd_bf16", True, "bf16", False),
        ("kd_bf16_teacher_known", True, "bf16", True),
    ):
        step = floor(distil, device, 1, precision, teacher_known=known)
        step()  # makes the optimiser's state
        found[f"{name}_images_per_s"] = BATCH / limit.seconds(step, device, precision)
    return found


def ratios(measured: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Whose throughput is how many times whose."""
    pairs = {
        "train.vs_floor": ("scratch", "floor_scratch"),
        "kd_live.vs_floor": ("kd", "floor_kd"),
        "kd_live.vs_field": ("kd", "field_kd"),
        "kd_live.vs_torchdistill": ("kd", "torchdistill_kd"),
        "kd_bf16.vs_floor": ("kd_bf16", "floor_kd_bf16"),
        "kd_bf16.vs_field": ("kd_bf16", "field_kd"),
        "kd_bf16.vs_kd_live": ("kd_bf16", "kd"),
        "kd_cached.vs_kd_live": ("kd_cached", "kd"),
        "kd_cached.vs_field": ("kd_cached", "field_kd"),
        "kd_cached_bf16.vs_field": ("kd_cached_bf16", "field_kd"),
        "kd_cached_bf16.vs_floor": ("kd_cached_bf16", "floor_kd_bf16_teacher_known"),
    }
    for p in (25, 50, 75):
        pairs[f"iakd_p{p}.vs_kd_live"] = (f"iakd_p{p}", "kd")
        pairs[f"iakd_p{p}.vs_scratch"] = (f"iakd_p{p}", "scratch")
        pairs[f"iakd_p{p}.vs_field"] = (f"iakd_p{p}", "field_kd")
    numbers: dict[str, dict[str, float]] = {}
    for name, pair in pairs.items():
        if set(pair) <= set(measured):
            section, key = name.split(".")
            numbers.setdefault(section, {})[key] = common.ratio(measured, *pair)
    return numbers


def steady() -> dict[str, float]:
    """Rate at the end of a long training of a tiny network over that at its beginning, and the memory it gained.

    By the time that the processor gave to one thread: what else it did meanwhile counts less.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = contestants.training("iakd", torch.device("cpu"), LONG // PARTS, p=0.5, pair=("resnet14", "resnet8"), side=8)
    seconds, memory = [], []
    for _ in range(PARTS):
        start = time.process_time()
        contestants.epoch(made)
        seconds.append(time.process_time() - start)
        memory.append(resident_mib())
    torch.set_num_threads(threads)
    first, last = statistics.median(seconds[: PARTS // 2]), statistics.median(seconds[PARTS // 2 :])
    return {"rate_at_end_vs_start": first / last, "mib_gained": memory[-1] - memory[PARTS // 4]}


def peak() -> float:
    """GiB of memory that this process has used at most, training on as many images as CIFAR-100 has.

    Run first: torch and all data are included, and whatever ran before would be.
    """
    made = contestants.training("iakd+kd", torch.device("cpu"), IMAGES // BATCH, p=0.5)
    made.objective.train()
    batches = made.data.epoch(0, 0, BatchFormat(BATCH, made.recipe.augment, channels_last=made.channels_last))
    for batch in islice(batches, 3):
        made.train_step(batch)
    predict(made.objective.student, made.data, VALIDATION_BATCH, made.channels_last)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_mib() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
