"""Step 2 of mirroring: list the files of all runs, finished and live, of exported models, and of the report.

A finished run has its files in results/<path>/, a live one in .state/<path>/ until its end.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iakd import files
from iakd.experiment.jobs import RESULTS, STATE
from iakd.experiment.run_dir import (
    BEST,
    BIBLIOGRAPHY,
    CARD,
    EVALUATION,
    EXPORT,
    FIGURES,
    HISTORY,
    INT8,
    JOURNAL,
    LABELS,
    LATEX,
    LOCK,
    METRICS,
    MODEL,
    ONNX,
    PARAGRAPH,
    PEER,
    PREPROCESSING,
    PT2,
    REPORT,
    RESULTS_FILE,
    RUN,
    TABLES,
    TABLES_TEXT,
    TRIALS,
)

RUN_FILES = (RUN, HISTORY, METRICS, EVALUATION, MODEL, PEER, BEST, TRIALS, JOURNAL)
REPORT_FILES = (REPORT, TABLES, TABLES_TEXT, LATEX, PARAGRAPH, BIBLIOGRAPHY, RESULTS_FILE)
EXPORT_FILES = (EXPORT, ONNX, INT8, PT2, MODEL, LABELS, PREPROCESSING, CARD)
MAX_DEPTH = 6  # below results/<dataset>/; trials/0007/seed0 of a study is at 6

FileStamp = tuple[str, int, int]  # name, modification time in ns, size in bytes
RunLocation = tuple[str, bool]  # path, live


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, exported model or report, in one folder. Two are equal if no file changed in between."""

    path: str
    stamps: tuple[FileStamp, ...]
    live: bool = False  # in .state/, not finished
    locked: bool = False  # live, and a process is working on it

    @property
    def location(self) -> RunLocation:
        """Where a run is, whatever its files contain."""
        return self.path, self.live

    @property
    def folder(self) -> Path:
        """The folder that holds these files."""
        return (STATE if self.live else RESULTS) / self.path

    @property
    def is_report(self) -> bool:
        """Whether this is the report rather than a run."""
        return any(name == REPORT for name, *_ in self.stamps)

    @property
    def is_export(self) -> bool:
        """Whether this is an exported model rather than a run."""
        return self.stamps[0][0] == EXPORT

    def names(self) -> list[str]:
        """Return the files' names, relative to the folder."""
        return [name for name, *_ in self.stamps]

    def times(self) -> dict[str, int]:
        """Return each file's modification time in ms since 1970."""
        return {name: nanoseconds // 10**6 for name, nanoseconds, _ in self.stamps}


def scan(dataset: str) -> list[RunFiles]:
    """Return all runs of a data set, each study before its trials, then the report and exported models.

    Skips what vanishes meanwhile.
    """
    # live runs first: a run that ends at this moment is then seen twice rather than missed
    live = [run for path in _folders(STATE, dataset, RUN) if (run := _live_run(path))]
    finished = [_finished(path, RUN_FILES) for path in _folders(RESULTS, dataset, RUN)]
    report = _finished(f"{dataset}/report", REPORT_FILES)
    exports = [_finished(path, EXPORT_FILES) for path in _folders(RESULTS, f"{dataset}/export", EXPORT)]
    complete = [run for run in finished if run.stamps and run.stamps[0][0] == RUN]
    models = [export for export in exports if export.stamps and export.is_export]
    runs = sorted([*complete, *live], key=lambda run: run.location)
    return [*runs, *([report] if report.is_report else []), *sorted(models, key=lambda model: model.location)]


def signature(runs: list[RunFiles], plan: str = "") -> str:
    """Return a digest of all runs that no process is working on, and of the settings of the experiment, `plan`."""
    return files.digest([plan, *([run.path, run.live, run.stamps] for run in runs if not run.locked)])


def _folders(root: Path, top: str, name: str) -> Iterator[str]:
    """Yield the paths in and below `top` in `root` that have a file `name`."""
    pending = [(top, 0)]
    while pending:
        path, depth = pending.pop()
        try:
            with os.scandir(root / path) as entries:
                present = {e.name: e.is_dir() for e in entries if not e.name.startswith(".")}
        except OSError:
            continue
        if name in present:
            yield path
        if depth < MAX_DEPTH:
            pending += [(f"{path}/{inner}", depth + 1) for inner, is_folder in present.items() if is_folder]


def _finished(path: str, names: tuple[str, ...]) -> RunFiles:
    folder = RESULTS / path
    try:
        figures = sorted(
            f"{FIGURES}/{e.name}" for e in os.scandir(folder / FIGURES) if e.is_file() and e.name[0] != "."
        )
    except OSError:
        figures = []
    return RunFiles(path, _stamps(folder, (*names, *figures)))


def _live_run(path: str) -> RunFiles | None:
    folder = STATE / path
    try:
        locked = files.held(folder / LOCK)
    except OSError:
        return None
    stamps = _stamps(folder, (RUN, HISTORY))
    if not stamps or stamps[0][0] != RUN:  # it has just finished
        return None
    return RunFiles(path, stamps, live=True, locked=locked)


def _stamps(folder: Path, names: tuple[str, ...]) -> tuple[FileStamp, ...]:
    stamps = []
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)
