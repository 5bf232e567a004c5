"""A finished experiment as numbers to keep: accuracy, by seed, and wall time of every method, what swapping added, and
the command that ran it.

python bench/experiment.py results/NAME OUT.json --command 'snakemake …'
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import common
from iakd import files
from iakd.experiment import run_dir


def group(folders: list[Path]) -> dict[str, Any]:
    """The seeds of one method, or of a teacher."""
    records = [files.read_json(folder / run_dir.RUN, "finish the experiment") for folder in folders]
    evaluations = [files.read_json(folder / run_dir.EVALUATION, "run `iakd evaluate`") for folder in folders]
    top1 = [evaluation["top1"] for evaluation in evaluations]
    return {
        "top1": round(statistics.mean(top1), 3),
        "top1_std": round(statistics.stdev(top1), 3) if len(top1) > 1 else None,
        "seeds": len(top1),
        "top1_by_seed": {folder.name: round(value, 3) for folder, value in zip(folders, top1, strict=True)},
        "wall_seconds": round(statistics.mean(record["wall_seconds"] for record in records), 1),
        "device": records[0]["device"],
    }


def main() -> None:
    """Read the results' folder and write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="what was run")
    arguments = parser.parse_args()
    finished = [path.parent for path in sorted(arguments.results.glob(f"*/**/{run_dir.EVALUATION}"))]
    swapping = arguments.results / "evaluation" / run_dir.SWAPPING
    names = sorted({str(folder.parent.relative_to(arguments.results)) for folder in finished})
    files.write_json(
        arguments.out,
        {
            "machine": common.machine(),
            "commit": files.read_json(finished[0] / run_dir.RUN, "finish the experiment")["git_commit"],
            "command": arguments.command,
            "swapping": [found for found in files.read_json(swapping, "run `iakd evaluate`") if found["counterpart"]],
            "results": {name: group([f for f in finished if f.parent == arguments.results / name]) for name in names},
        },
    )


if __name__ == "__main__":
    main()
