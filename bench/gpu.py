"""How fast trainings are on a GPU: resnet56 → resnet20, batches of 64 images of CIFAR-100's size. About 6 minutes.

    python bench/gpu.py [--data FOLDER] [--part NAME]…

Nothing is downloaded: images are random numbers, but for a short real training at the end, where `--data` names a
folder or archive of CIFAR-100. Every part is a process of its own with a time limit, so that one that fails costs
no other its numbers. `*_240_epochs_s` are the seconds that the published recipe's 187,680 steps would take.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.profiler import ProfilerActivity

import common
import contestants
import field
from contestants import BATCH, Contestant, floor, ours
from iakd import config, devices, files
from iakd.experiment.jobs import plan_experiment
from iakd.stages import prepare, teach

LIMITS = {
    "graphs": 100,
    "eager": 90,
    "together": 100,
    "free": 45,
    "agreement": 60,
    "profile": 60,
    "real": 90,
}  # seconds
STEPS = 782 * 240  # of the published recipe
TURNS = 3
WARM = 2500, 6  # steps after which most patterns of swaps have been met twice, and seconds to spend on them at most
CONTESTANTS: dict[str, tuple[str, float, dict[str, object]]] = {  # method, p, options of iakd
    "scratch": ("scratch", 1.0, {}),
    "kd": ("kd", 1.0, {}),
    "iakd": ("iakd", 0.5, {}),
    "two_path": ("iakd+kd", 0.5, {"form": "two_path", "paths": "student_to_teacher"}),
}


def main() -> None:
    """All parts, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="CIFAR-100, in any form that iakd prepare reads")
    parser.add_argument("--part", action="append", choices=list(LIMITS))
    parser.add_argument("--here", action="store_true", help="in this process, without time limits")
    parser.add_argument("--device", default="cuda", help="cpu: only to see that all of it runs")
    parser.add_argument("--steps", type=int, default=40, help="of each turn")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; bench/train.py is for the CPU")
    wanted = [part for part in options.part or LIMITS if part != "real" or options.data]
    for part in wanted:
        if options.here:
            common.record(f"gpu_{part}", run(part, options))
            continue
        command = [sys.executable, __file__, "--here", "--part", part, "--device", options.device]
        command += ["--steps", str(options.steps), *(["--data", str(options.data.resolve())] if options.data else [])]
        try:
            code = subprocess.run(command, timeout=LIMITS[part], check=False).returncode
        except subprocess.TimeoutExpired:
            code = "too slow"
        if code:
            print(f"part {part} failed ({code})", file=sys.stderr)


def run(part: str, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of one part."""
    compute = config.Compute(device=options.device, deterministic=part != "free")
    device = devices.set_up_device(compute)
    if part == "free":
        torch.backends.cudnn.benchmark = True
    if part == "together":
        return together(device, options.steps)
    if part == "agreement":
        return agreement(device)
    if part == "profile":
        return profile(device, options.steps)
    if part == "real":
        return real(options.data, options.device)
    return loops(part, device, options.steps)


def loops(part: str, device: torch.device, steps: int) -> dict[str, float]:
    """Contestants in turn, and what 240 epochs would take."""
    found: dict[str, Contestant | None] = {"floor_kd": floor(True, device, steps)}
    if part == "eager":
        found |= {
            "floor_scratch": floor(False, device, steps),
            "floor_kd_bf16": floor(True, device, steps, precision="bf16"),
            "floor_kd_contiguous": floor(True, device, steps, channels_last=False),
            "field_kd": field.loop(device, steps),
            "torchdistill_kd": field.torchdistill(device, steps),
        }
    engine = "eager" if part == "eager" else "graphs"
    for method, (expression, p, options) in CONTESTANTS.items():
        if options and part == "free":
            continue
        for precision in ("fp32", "bf16"):
            for layout in ("auto", False) if part == "graphs" and method == "kd" else ("auto",):
                name = f"{method}_{precision}" + ("" if layout else "_contiguous")
                settings = {"p": p, "precision": precision, "engine": engine, "channels_last": layout, "iakd": options}
                make = warmed if part == "graphs" and "iakd" in expression else ours
                found[name] = make(expression, device, steps, **settings)
    measured = common.turns({name: work for name, work in found.items() if work}, TURNS)
    numbers = {f"{name}_240_epochs_s": STEPS * BATCH / statistics.median(rate) for name, rate in measured.items()}
    for name in set(measured) & {f"{method}_{precision}" for method in CONTESTANTS for precision in ("fp32", "bf16")}:
        for theirs in {"floor_kd", "field_kd", "torchdistill_kd"} & set(measured):
            numbers[f"{name}.vs_{theirs}"] = common.ratio(measured, name, theirs)
    for name in {"iakd_fp32", "two_path_fp32"} & set(measured):
        numbers[f"{name}.vs_kd"] = common.ratio(measured, name, "kd_fp32")
    if device.type == "cuda":
        numbers["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return numbers


def warmed(expression: str, device: torch.device, steps: int, **settings: Any) -> Contestant:
    """Ours, after most patterns of swaps have been recorded; says what that took."""
    contestant = ours(expression, device, steps, **settings)
    start = time.perf_counter()
    done = 0
    while done < WARM[0] and time.perf_counter() - start < WARM[1] and device.type == "cuda":
        done += contestant() // BATCH
    print(f"{expression} {settings}: {time.perf_counter() - start:.1f} s for {done} steps", file=sys.stderr)
    return contestant


def together(device: torch.device, steps: int) -> dict[str, float]:
    """Images per second of one training and of four at once on one GPU, of a resnet20 by kd with graphs.

    `<n>_images_per_s`: each in a process of its own; `<n>_in_one_process_images_per_s`: side by side in one.
    """
    counts = (1, 4) if device.type == "cuda" else (1, 2)
    numbers = {f"{count}_images_per_s": sum(together_rates(device, steps, count, [1])) for count in counts}
    shared = together_rates(device, steps, 1, list(counts[1:]))
    numbers |= {f"{count}_in_one_process_images_per_s": rate for count, rate in zip(counts[1:], shared, strict=True)}
    one = numbers["1_images_per_s"]
    return numbers | {name.replace("_images_per_s", ".vs_one"): rate / one for name, rate in numbers.items()}


def together_rates(device: torch.device, steps: int, processes: int, each: list[int]) -> list[float]:
    """The rates of so many processes at the same time, which train `each` of these numbers one after another."""
    code = (
        "import sys; from contestants import side_by_side; from iakd import config, devices; "
        "kind, steps, *each = sys.argv[1:]; device = devices.set_up_device(config.Compute(device=kind))\n"
        "def ready():\n    print('ready', flush=True); input()\n"
        "for n in each:\n    print(side_by_side('kd', device, int(steps), int(n), ready, engine='graphs'), flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])}
    command = [sys.executable, "-c", code, device.type, str(steps), *map(str, each)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    rates = []
    for _ in each:
        for worker in workers:
            assert worker.stdout and worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("\n")
            worker.stdin.flush()
        rates += [float(worker.stdout.readline()) for worker in workers if worker.stdout]
    for worker in workers:
        worker.wait()
    return rates


def profile(device: torch.device, steps: int) -> dict[str, float]:
    """What a step of kd asks of the device: kernels, milliseconds that it is busy, and milliseconds by the clock."""
    numbers = {}
    for engine, precision in (("graphs", "fp32"), ("graphs", "bf16"), ("eager", "fp32")):
        made = contestants.training("kd", device, steps, precision=precision, engine=engine)
        for _ in range(2):
            contestants.epoch(made)
        contestants.synchronise(device)
        start = time.perf_counter()
        contestants.epoch(made)
        contestants.synchronise(device)
        name = f"{engine}_{precision}"
        numbers[f"{name}_wall_ms"] = 1000 * (time.perf_counter() - start) / steps
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as seen:
            contestants.epoch(made)
            contestants.synchronise(device)
        events = seen.key_averages()
        numbers[f"{name}_kernels"] = sum(event.count for event in events) / steps
        numbers[f"{name}_busy_ms"] = sum(event.self_device_time_total for event in events) / 1000 / steps
    return numbers


def agreement(device: torch.device) -> dict[str, float]:
    """Largest difference of a weight after 50 steps with the same masks, engines against eager; 0 is bit-identical."""
    numbers = {}
    for precision in ("fp32", "bf16"):
        states = {}
        for engine in ("eager", "graphs", "eager again"):
            made = contestants.training(
                "iakd+kd", device, 10, p=0.9, precision=precision, engine=engine.removesuffix(" again")
            )
            for _ in range(5):
                contestants.epoch(made)
            states[engine] = made.objective.student.state_dict()
        for engine in ("graphs", "eager again"):
            differences = [
                (value.float() - states["eager"][name].float()).abs().max().item()
                for name, value in states[engine].items()
            ]
            numbers[f"{engine.replace(' ', '_')}_{precision}_difference"] = max(differences)
    return numbers


def real(data: Path, device: str) -> dict[str, float]:
    """A resnet20 on CIFAR-100 for a few epochs, from the files to the model; validation accuracy by engine."""
    settings = yaml.safe_load((common.ROOT / "experiments" / "cifar100.yaml").read_text())
    settings["dataset"] |= {"path": str(data)}
    settings["teachers"] = [{"arch": "resnet20"}]
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for engine, precision in (("eager", "fp32"), ("graphs", "fp32"), ("graphs", "bf16")):
            settings["teach"]["recipe"] |= {"epochs": 2 if engine == "eager" else 4, "precision": precision}
            settings["compute"] = {"device": device, "engine": engine}
            experiment = plan_experiment(config.parse(settings, "bench"))
            start = time.perf_counter()
            prepare.run(experiment)
            name = f"{engine}_{precision}"
            numbers[f"{name}_prepare_s"] = time.perf_counter() - start
            metrics = files.read_json(teach.run(experiment, experiment.teachers[0]) / "metrics.json", "")
            numbers |= {f"{name}_val_top1": metrics["val_top1"], f"{name}_epochs": metrics["epochs"]}
            numbers[f"{name}_s"] = time.perf_counter() - start
    return numbers


if __name__ == "__main__":
    main()
