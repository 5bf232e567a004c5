"""What share of the default experiment's time is spent training: the rest is start-up, evaluation, the report.

    python bench/startup.py [--cores N]

Runs the whole chain, from the images to the report, in a fresh copy of the project; takes two to three minutes.
Training is what epochs took, validations and checkpoints left out. `training_share` counts cores: it is 1 if all of
them train from Snakemake's first moment to its last. `wall_share` is the share of the time in which something trains.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import common
from iakd import files
from iakd.experiment import run_dir

RESULTS = Path("results/digits")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=common.cores())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = subprocess.run(["git", "ls-files"], cwd=common.ROOT, check=True, capture_output=True, text=True)
        for path in listed.stdout.splitlines():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(common.ROOT / path, folder / path, follow_symlinks=False)
        started, seconds = time.time(), run(folder, options.cores)
        found = sorted(path.parent for path in (folder / RESULTS).rglob(run_dir.RUN))
        records = [files.read_json(path / run_dir.RUN, "train it again") for path in found]
        trained = [training_seconds(path) for path in found]
    trainings = [record for record, amount in zip(records, trained, strict=True) if amount]
    common.record(
        "startup",
        {
            "chain_s": seconds,
            "trainings": len(trainings),
            "training_share": sum(trained) / (seconds * options.cores),
            "wall_share": covered(trainings) / seconds,
            "until_first_training_s": min(moment(record["started"]) for record in trainings) - started,
            "after_last_training_s": started + seconds - max(moment(record["finished"]) for record in trainings),
        },
    )


def run(folder: Path, cores: int) -> float:
    """Run the chain in `folder`; the seconds that it took."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--quiet", "all"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit("the chain failed")
    return time.perf_counter() - start


def training_seconds(folder: Path) -> float:
    """What the epochs of a run took; 0 for a study, whose trials count themselves.

    A pruned trial keeps its validated epochs only: the others are taken to have cost as much.
    """
    rows = [row for row in run_dir.read_history(folder / run_dir.HISTORY) if row.get("seconds")]
    return sum(row["seconds"] or 0 for row in rows) / len(rows) * (rows[-1]["epoch"] or 0) if rows else 0.0


def covered(records: list[dict[str, str]]) -> float:
    """Seconds in which at least one of these runs was at work."""
    total, until = 0.0, 0.0
    for start, end in sorted((moment(record["started"]), moment(record["finished"])) for record in records):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def moment(text: str) -> float:
    """A time of a record, in seconds."""
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
