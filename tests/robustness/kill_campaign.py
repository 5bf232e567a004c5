"""Kill a Snakemake workflow at random moments until it has been killed often enough, and compare what it ends with.

    python tests/robustness/kill_campaign.py                       # 60 kills, seed 0; takes ten minutes or longer
    python tests/robustness/kill_campaign.py --kills 5 --seed 7

A copy of this project runs the workflow once, undisturbed. Then it starts from nothing, is killed (SIGKILL: all its
processes, or, every third time, Snakemake alone) after a random share of the CPU time that the undisturbed one took,
and is started again, until it ends by itself; and so on from nothing until there have been enough kills. Each time it
has ended, all results are compared with the undisturbed ones, bit by bit except for measured times, and nothing else
may lie beside them. Exits with code 1 if anything differs.
"""

import argparse
import csv
import io
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.workflow.conftest import Project

SETTINGS = "tests/robustness/short.yaml"
COMMAND = ("snakemake", "--cores", "2", "--quiet", "all", "--configfile", SETTINGS)
TIMES = re.compile(
    r"(.*_)?(seconds|latency_ms|images_per_s|started|finished|pid|worker_id|datetime_start|datetime_complete|sha256)"
    r"(_ratio)?"
)
KEPT_HASHES = ("data_sha256", "model_sha256", "peer_sha256", "teacher_sha256")
LONGEST_SHARE = 0.7  # of the undisturbed run's CPU time until a kill; half of that are imports
EVERY_KILLED_ALONE = 3


def main() -> None:
    """Run the campaign and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        sys.exit(campaign(Project.copy(Path(folder) / "project"), options.kills, random.Random(options.seed)))


def campaign(project: Project, kills: int, choice: random.Random) -> int:
    """Run the workflow undisturbed, then with kills; return the number of rounds that ended with something else."""
    _, seconds = run(project, None, alone=False)
    expected, beside = outcome(project.path), others(project.path)
    print(f"undisturbed: {len(expected)} files, {seconds:.1f} s of CPU time", flush=True)
    done, rounds, wrong = 0, 0, 0
    while done < kills:
        clear(project.path)
        ended = False
        while not ended:
            budget = choice.uniform(0.0, LONGEST_SHARE) * seconds if done < kills else None
            ended, used = run(project, budget, alone=done % EVERY_KILLED_ALONE == 2)
            done += not ended
            if not ended:
                print(f"kill {done} after {used:.1f} s of CPU time", flush=True)
        rounds += 1
        found = outcome(project.path)
        names = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
        names |= others(project.path) ^ beside
        wrong += bool(names)
        verdict = f"differs: {sorted(names)}" if names else "bit-identical, nothing left over"
        print(f"round {rounds}, {done} kills: {verdict}", flush=True)
    print(f"{done} kills in {rounds} rounds: {wrong} rounds ended with something else")
    return min(wrong, 1)


def run(project: Project, budget: float | None, alone: bool) -> tuple[bool, float]:
    """Run the workflow; kill it at `budget` seconds of CPU time. Return whether it ended, and the seconds it took."""
    log = project.path.parent / "snakemake.log"
    process = project.start(*COMMAND, log=log)
    used: dict[int, float] = {}
    while process.poll() is None:
        family = relatives(process.pid)
        for member in family:
            try:
                times = member.cpu_times()
                used[member.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        if budget is not None and sum(used.values()) >= budget:
            for member in [psutil.Process(process.pid)] if alone else family:
                try:
                    member.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            process.wait()
            return False, sum(used.values())
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"the workflow failed after a kill:\n{log.read_text()}")
    return True, sum(used.values())


def relatives(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started, directly or not."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def clear(folder: Path) -> None:
    """Remove everything that the workflow has made."""
    for name in ("results", ".state", ".snakemake", "logs"):
        shutil.rmtree(folder / name)


def others(folder: Path) -> set[str]:
    """Return the files beside the results: locks, and none of what is needed to resume."""
    return {str(path.relative_to(folder)) for path in folder.glob(".state/**/*") if path.is_file()}


def outcome(folder: Path) -> dict[str, Any]:
    """Return the contents of all results, without measured times and what is drawn from them."""
    paths = (path for path in folder.glob("results/**/*") if path.is_file())
    return {str(path.relative_to(folder)): comparable(path) for path in paths}


def comparable(path: Path) -> Any:
    """Return the content of a file without measured times."""
    content = path.read_bytes()
    match path.suffix:
        case ".json":
            return timeless(json.loads(content))
        case ".journal":
            return [timeless(json.loads(line)) for line in content.splitlines()]
        case ".csv":
            return [timeless(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        case ".html" | ".md" | ".svg" | ".png":  # they show measured times
            return bool(content)
        case _:
            return content


def timeless(value: Any) -> Any:
    """Remove measured times, and hashes of files that contain some, from nested values."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if name in KEPT_HASHES or not TIMES.fullmatch(str(name))}
        return {name: timeless(inner) for name, inner in kept.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
