"""What the results tree holds at one moment: finished runs, live ones, and the report."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iakd import files
from iakd.experiment.jobs import RESULTS, STATE
from iakd.experiment.run_dir import HISTORY, LOCK, METRICS, MODEL, RUN

EVALUATION, REPORT = "evaluation.json", "report.html"
FIGURES = "figures"
RUN_FILES = (RUN, HISTORY, METRICS, EVALUATION, MODEL, "schedule.yaml", "trials.csv", "study.journal")
REPORT_FILES = (REPORT, "tables.csv", "tables.md")
DEPTH = 6  # below results/<dataset>/; trials/0007 of a study are at 3

Stamp = tuple[str, int, int]  # name, modification time in ns, size


@dataclass(frozen=True)
class Found:
    """A run's files in one folder, results/<path>/ or .state/<path>/; equal as long as nothing changed."""

    path: str
    stamps: tuple[Stamp, ...]
    live: bool = False  # in .state/, not finished
    held: bool = False  # live, and a process is at it

    @property
    def folder(self) -> Path:
        """Where these files are."""
        return (STATE if self.live else RESULTS) / self.path

    @property
    def report(self) -> bool:
        """Whether this is the report rather than a run."""
        return any(name == REPORT for name, *_ in self.stamps)

    def names(self) -> list[str]:
        """The files, relative to the folder."""
        return [name for name, *_ in self.stamps]


def scan(dataset: str) -> list[Found]:
    """All runs of a data set, a study before its trials, and the report, without what vanishes meanwhile."""
    live = [found for path in _run_folders(STATE, dataset) if (found := _live(path))]  # first: a run that ends now
    finished = [_found(path, RUN_FILES) for path in _run_folders(RESULTS, dataset)]  # is seen twice, not missed
    report = _found(f"{dataset}/report", REPORT_FILES)
    seen = [found for found in finished if found.stamps and found.stamps[0][0] == RUN]
    runs = sorted([*seen, *live], key=lambda found: (found.path, found.live))
    return [*runs, report] if report.report else runs


def signature(found: list[Found]) -> str:
    """A digest of everything that is settled: what no process is at."""
    return files.digest([[f.path, f.live, f.stamps] for f in found if not f.held])


def _run_folders(root: Path, dataset: str) -> Iterator[str]:
    """Paths below `root` with a run.json."""
    todo = [(dataset, 0)]
    while todo:
        path, depth = todo.pop()
        try:
            with os.scandir(root / path) as entries:
                present = {e.name: e.is_dir() for e in entries if not e.name.startswith(".")}
        except OSError:
            continue
        if RUN in present:
            yield path
        if depth < DEPTH:
            todo += [(f"{path}/{name}", depth + 1) for name, folder in present.items() if folder]


def _found(path: str, names: tuple[str, ...]) -> Found:
    folder = RESULTS / path
    try:
        figures = sorted(
            f"{FIGURES}/{e.name}" for e in os.scandir(folder / FIGURES) if e.is_file() and e.name[0] != "."
        )
    except OSError:
        figures = []
    return Found(path, _stamps(folder, (*names, *figures)))


def _live(path: str) -> Found | None:
    folder = STATE / path
    try:
        held = files.held(folder / LOCK)
    except OSError:
        return None
    stamps = _stamps(folder, (RUN, HISTORY))
    if not stamps or stamps[0][0] != RUN:  # it has finished since
        return None
    return Found(path, stamps, live=True, held=held)


def _stamps(folder: Path, names: tuple[str, ...]) -> tuple[Stamp, ...]:
    stamps = []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)
