"""Seconds that Snakemake needs to experiment an experiment of many jobs: `snakemake -n`.

python bench/dag.py [--jobs 2000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

import common
from iakd.config import parse
from iakd.experiment.jobs import plan_experiment


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    wanted = parser.parse_args().jobs
    numbers = {}
    for share in (4, 1):
        jobs, seconds = dry_run(wanted // share)
        numbers |= {f"jobs_{jobs}_seconds": seconds}
    common.record("dag", {**numbers, "jobs": jobs, "seconds": seconds})


def dry_run(wanted: int) -> tuple[int, float]:
    """Jobs of an experiment of about so many, and seconds of its dry run; each student is trained and evaluated."""
    settings = yaml.safe_load((common.ROOT / "params.yaml").read_text())
    per_seed = 2 * len(settings["methods"])
    settings["distill"]["seeds"] = list(range(max(1, round(wanted / per_seed))))
    experiment = plan_experiment(parse(settings, "bench"))
    jobs = 2 * len(experiment.trained) + len(experiment.studies) + 3
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "many.yaml")
        file.write_text(yaml.safe_dump(settings))
        command = [Path(sys.executable).with_name("snakemake"), "-n", "--quiet", "all", "--cores", "2"]
        command += ["--directory", folder, "--snakefile", common.ROOT / "workflow/Snakefile", "--configfile", file]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return jobs, time.perf_counter() - start


if __name__ == "__main__":
    main()
