"""What the benchmarks share: fair timing, and the one file that their numbers go to.

`results/latest.json` is a flat map of dotted names to numbers; a name ending in `.vs_…` is the throughput of ours over
theirs, measured in the same run. Beside the numbers it has `machine`, `commit` and `command`.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from iakd import files

ROOT = Path(__file__).parent.parent
LATEST = ROOT / "bench" / "results" / "latest.json"


def turns(
    contestants: Mapping[str, Callable[[], int]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Things per second of each contestant in each turn; a contestant does its work and returns how many that were.

    They take turns, so that whatever else the machine does hits all alike; a first, untimed turn warms them up.
    """
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repetitions + 1):
        for name, work in contestants.items():
            start = clock()
            done = work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = clock() - start
            if turn:
                measured[name].append(done / seconds)
    return measured


def rates(contestants: Mapping[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """Median things per second of each contestant; see `turns`."""
    return {name: statistics.median(values) for name, values in turns(contestants, repetitions).items()}


def ratio(measured: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """How many times as fast as `theirs` `ours` was: the median over the turns, each compared within itself."""
    return statistics.median(a / b for a, b in zip(measured[ours], measured[theirs], strict=True))


def record(name: str, numbers: Mapping[str, float]) -> None:
    """Put `numbers` into latest.json as `<name>.<key>`, in place of all that this benchmark put there before.

    Numbers of other benchmarks stay only if they are of the same machine and commit.
    """
    with files.exclusive(LATEST.with_suffix(".lock"), f"{LATEST}: another benchmark is writing it"):
        about = {"machine": machine(), "commit": commit()}
        old = files.read_json(LATEST, "delete it") if LATEST.exists() else {}
        same = all(old.get(key) == value for key, value in about.items())
        ran = set(old["command"].split("; ")) if same else set()
        kept = {key: value for key, value in old.items() if same and isinstance(value, int | float)}
        kept = {key: value for key, value in kept.items() if not key.startswith(f"{name}.")}
        new = {f"{name}.{key}": float(f"{value:.5g}") for key, value in numbers.items()}
        command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        about["command"] = "; ".join(sorted(ran | {command}))
        files.write_json(LATEST, {**about, **dict(sorted({**kept, **new}.items()))})
    for key, value in new.items():
        print(f"{key:40} {value:>12,.5g}")


def machine() -> str:
    """Processor, number of cores that may be used, GPU, versions."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {cores()} cores{gpu}; torch {torch.__version__}, Python {platform.python_version()}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit, with '-dirty' behind it where sources differ."""
    changed = _git("status", "--porcelain", "--", "src", "bench", ":!bench/results")
    return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
