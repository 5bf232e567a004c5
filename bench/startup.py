"""What share of a finished workflow was spent training, from what its runs recorded.

    python bench/startup.py [--results results/digits] [--cores N]

Run it after `make run` on a quiet machine. Training is the time that epochs took, validations and checkpoints left
out; the whole is from the start of the first run to the end of the last, on N cores.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

import common
from iakd import files, runs


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/digits"))
    parser.add_argument("--cores", type=int, default=common.cores())
    options = parser.parse_args()
    found = [path.parent for path in sorted(options.results.rglob(runs.RUN)) if (path.parent / runs.HISTORY).exists()]
    if not found:
        sys.exit(f"{options.results} holds no finished run: `make run` first")
    records = [files.read_json(folder / runs.RUN, "train it again") for folder in found]
    training = [sum(row["seconds"] or 0 for row in runs.read_history(folder / runs.HISTORY)) for folder in found]
    started = min(datetime.fromisoformat(record["started"]) for record in records)
    finished = max(datetime.fromisoformat(record["finished"]) for record in records)
    whole = (finished - started).total_seconds() * options.cores
    inside = sum(record["wall_seconds"] for record in records)
    numbers = {"runs": len(found), "training_share": sum(training) / whole, "inside_runs_share": inside / whole}
    common.record("startup", {**numbers, "training_share_of_runs": sum(training) / inside})


if __name__ == "__main__":
    main()
