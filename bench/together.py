"""Three seeds of a default student: each in a process of its own, one after another in one, and side by side in one.

    python bench/together.py [--epochs N]

One thread each, on the CPU. `*_s` are seconds until all are trained, start-up of the processes included, one process
at a time; `*_cpu_s` what the processors spent, which other work on the machine does not lengthen; `*_mib` the most
memory that a process held.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

METHODS, SEEDS = ("kd", "iakd-linear"), ("0", "1", "2")
SETTINGS = {"compute.device": "cpu", "compute.teacher_cache": "off", "tracking.enabled": "false"}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=240, help="of a student")
    options = parser.parse_args()
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {**SETTINGS, "teach.recipe.epochs": "5", "distill.recipe.epochs": str(options.epochs)}
        measured(folder, settings, ["prepare"])
        measured(folder, settings, ["teach"])
        for method in METHODS:
            distill = ["distill", "--method", method]
            ways = {
                "processes": ("1", [[*distill, "--seed", seed] for seed in SEEDS]),
                "one_by_one": ("1", [distill]),
                "side_by_side": (str(len(SEEDS)), [distill]),
            }
            for way, (size, commands) in ways.items():
                for tree in ("results/digits/students", ".state/digits/students"):
                    shutil.rmtree(folder / tree, ignore_errors=True)
                costs = [measured(folder, {**settings, "compute.seeds_together": size}, one) for one in commands]
                seconds, cpu, mib = zip(*costs, strict=True)
                prefix = f"{method}_{way}"
                numbers |= {f"{prefix}_s": sum(seconds), f"{prefix}_cpu_s": sum(cpu), f"{prefix}_mib": max(mib)}
    common.record("together", numbers)


def measured(folder: Path, settings: dict[str, str], command: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processors, and MiB at most of `iakd COMMAND` with the default settings and these."""
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    line = [sys.executable, "-m", "iakd", *command, "--params", str(common.ROOT / "params.yaml"), *changes]
    start = time.perf_counter()
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(line)} failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
