"""How far a workflow is and how long the rest takes: from the benchmarks of its jobs, and from the live files."""

import csv
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from iakd import files
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import LOGS, RESULTS, STATE, Experiment, StudentJob, StudyJob, TeacherJob
from iakd.experiment.run_dir import HISTORY, LOCK, RUN
from iakd.tuning.results import trial_path

SHORT_JOB = 3.0  # seconds that a job without a training takes, until one was measured
SURE = 0.2  # of a job: once this much of it is done, its own pace alone says how long the rest takes
MANY = 50  # benchmarks are enough to learn from
HEAD, TAIL = 4096, 16384  # bytes of a history that are read
NAMES = {  # rule: what its job is called
    "prepare": "data",
    "teach": "teacher",
    "tune": "study",
    "distill": "student",
    "evaluate": "evaluation",
    "evaluation": "comparison",
}
RULES = {TeacherJob: "teach", StudyJob: "tune", StudentJob: "distill"}  # of the jobs that train
TRAININGS = tuple(RULES.values())
STAGES = ("prepare", "teach", "tune", "distill", "evaluate", "evaluation", "export", "latency", "report")


@dataclass
class Piece:
    """A job of the workflow."""

    rule: str  # as in STAGES, or a target
    paths: tuple[str, ...]  # of its results, below results/
    share: float = 1.0  # of the machine that it occupies, 0–1

    @property
    def kind(self) -> str:
        """What jobs that take equally long have in common: all but the seed."""
        seeds = self.rule in ("teach", "distill", "evaluate")
        return "/".join([self.rule, *(str(Path(path).parent if seeds else path) for path in self.paths[:1])])

    @property
    def benchmark(self) -> Path:
        """The file with the time that the job took."""
        suffix = {"evaluate": ".evaluate", "latency": ".latency"}.get(self.rule, "")
        return LOGS / f"{self.paths[0] if self.paths else self.rule}{suffix}.tsv"


def piece_of(rule: str, outputs: Iterable[str], share: float = 1.0) -> Piece:
    """Return the job of a rule that makes `outputs`."""
    folders = dict.fromkeys(Path(output).parent for output in outputs)
    paths = tuple(str(folder.relative_to(RESULTS)) for folder in folders if folder.is_relative_to(RESULTS))
    return Piece(stage_of(rule), paths, share)


def stage_of(rule: str) -> str:
    """Return the stage of a rule: of `distill_2`, or of `iakd_distill` in another workflow; else the rule itself."""
    return next((part for part in rule.split("_") if part in STAGES), rule)


@dataclass
class Progress:
    """How far a running job is."""

    fraction: float = 0.0
    text: str = ""  # such as: epoch 120/240
    accuracy: str = ""  # such as: val 95.3 %


@dataclass
class Running:
    """A job that runs."""

    piece: Piece
    seconds: float = 0.0  # since it started
    progress: Progress = field(default_factory=Progress)


@dataclass
class _Known:
    """What was read of a live history, with the time of the file."""

    stamp: int
    row: dict[str, str]
    validated: str | None


@dataclass
class Workload:
    """The jobs that a workflow has to run, those that run, and what is known about their times."""

    experiment: Experiment
    pieces: list[Piece]
    _measured: dict[str, list[float]] = field(default_factory=dict)  # seconds, by kind
    _units: dict[str, float] = field(default_factory=dict)  # by kind
    _known: dict[Path, _Known] = field(default_factory=dict)
    _images: int | None = None

    def __post_init__(self) -> None:
        experiment = self.experiment
        self._jobs = {job.path: job for job in (*experiment.studies, *experiment.trained)}
        self._learn_from_benchmarks()

    def _learn_from_benchmarks(self) -> None:
        """Read the times of jobs that do not run again, whose results are current; without any, those of the others."""
        planned = {(piece.rule, path) for piece in self.pieces for path in piece.paths}
        trainings = list(self._all_trainings())
        self._learn_from([piece for piece in trainings if (piece.rule, piece.paths[0]) not in planned])
        if not any(self._units.values()):
            self._learn_from(trainings)

    def _learn_from(self, pieces: list[Piece]) -> None:
        read = 0
        for piece in pieces:
            if read < MANY and len(self._seconds(piece)) < 3:
                seconds = _benchmark_seconds(piece.benchmark)
                if seconds is not None:
                    read += 1
                    self.learn(piece, seconds)

    def _all_trainings(self) -> Iterable[Piece]:
        for job in self._jobs.values():
            yield Piece(RULES[type(job)], (job.path,))
            if not isinstance(job, StudyJob):
                yield Piece("evaluate", (job.path,))

    def _seconds(self, piece: Piece) -> list[float]:
        return self._measured.setdefault(piece.kind, [])

    def learn(self, piece: Piece, seconds: float) -> None:
        """Note how long a job took."""
        self._seconds(piece).append(seconds)
        self._units[piece.kind] = self.units(piece)

    def units(self, piece: Piece) -> float:
        """Return the images that its trainings see; 0 for other jobs."""
        if piece.rule not in TRAININGS:
            return 0.0
        return sum(self._images_of(self._jobs[path]) for path in piece.paths if path in self._jobs)

    def _images_of(self, job: Any) -> float:
        if isinstance(job, TeacherJob):
            return 0.0 if job.network.imported else float(job.recipe.epochs * self._train_images())
        transfer = self.experiment.params.distill.transfer
        n = self._train_images()
        n = n if transfer is None else int(transfer * n) if isinstance(transfer, float) else transfer
        times = 1
        if isinstance(job, StudyJob):
            times = self.experiment.params.tune.trials * self.experiment.params.tune.seeds
        return float(times * job.recipe.epochs * n)

    def _train_images(self) -> int:
        if self._images is None:
            with suppress(OSError, UserError, KeyError, TypeError):
                manifest = files.read_object(self.experiment.data.folder / MANIFEST, "")
                self._images = int(manifest["splits"]["train"]["n"])
        return self._images or 1000

    def expected(self, piece: Piece, running: Iterable[Running] = ()) -> float | None:
        """Return how many seconds a job takes in all; None as long as nothing like it was measured."""
        if self._measured.get(piece.kind):
            return median(self._measured[piece.kind])
        units = self.units(piece)
        if not units:
            alike = [s for kind, found in self._measured.items() if kind.split("/")[0] == piece.rule for s in found]
            return median(alike) if alike else SHORT_JOB
        rate = self._rate(running)
        return None if rate is None else units * rate

    def _rate(self, running: Iterable[Running]) -> float | None:
        """Return the seconds per image of all trainings that are known, the running ones included."""
        known = [(median(s), self._units[kind]) for kind, s in self._measured.items() if s and self._units[kind]]
        known += [(job.seconds, job.progress.fraction * self.units(job.piece)) for job in running]
        known = [(seconds, units) for seconds, units in known if units]
        return sum(seconds for seconds, _ in known) / sum(units for _, units in known) if known else None

    def rest(self, job: Running, running: Iterable[Running] = ()) -> float | None:
        """Return the seconds until a running job is done; None as long as they cannot be known."""
        done, seconds = job.progress.fraction, self.expected(job.piece, running)
        if done > 0:
            pace = job.seconds / done  # of the whole job; at its beginning, the start-up makes it far too long
            trust = min(done / SURE, 1.0)
            return (1 - done) * (pace if seconds is None else trust * pace + (1 - trust) * seconds)
        if seconds is None:
            return None
        return seconds - job.seconds if seconds > job.seconds else job.seconds / 4  # late: nobody knows how late

    def left(self, waiting: Iterable[Piece], running: list[Running]) -> float | None:
        """Return the seconds until all is done; None as long as they cannot be known."""
        times = self._times(waiting, running)
        if any(seconds is None for _, seconds in times):
            return None
        known = [(share, seconds) for share, seconds in times if seconds is not None]
        longest = max((seconds for _, seconds in known), default=0.0)
        return max(sum(share * seconds for share, seconds in known), longest)

    def _times(self, waiting: Iterable[Piece], running: list[Running]) -> list[tuple[float, float | None]]:
        """Return the share of the machine and the seconds left of each job."""
        expected: dict[str, float | None] = {}
        times: list[tuple[float, float | None]] = []
        for piece in waiting:
            if piece.kind not in expected:
                expected[piece.kind] = self.expected(piece, running)
            times.append((piece.share, expected[piece.kind]))
        return times + [(job.piece.share, self.rest(job, running)) for job in running]

    def progress(self, piece: Piece) -> Progress:
        """Read how far a running job is from its live files."""
        jobs = [self._jobs[path] for path in piece.paths if path in self._jobs]
        if piece.rule == "tune" and jobs:
            return self._of_study(jobs[0])
        if piece.rule in ("teach", "distill") and jobs:
            found = [self._of_training(job.state, job.recipe.epochs) for job in jobs]
            first = min(found, key=lambda progress: progress.fraction)
            return Progress(sum(progress.fraction for progress in found) / len(found), first.text, first.accuracy)
        return Progress()

    def _of_training(self, live: Path, epochs: int) -> Progress:
        known = self._last_row(live)
        if known is None or not known.row.get("epoch"):
            return Progress()
        epoch = int(known.row["epoch"])
        accuracy = f"val {float(known.validated):.1f} %" if known.validated else ""
        return Progress(min(epoch / epochs, 1.0), f"epoch {epoch}/{epochs}", accuracy)

    def _of_study(self, job: Any) -> Progress:
        tune = self.experiment.params.tune
        known = self._last_row(job.state)
        rows = int(known.row["trial"]) + 1 if known else 0
        best = known.row.get("best_value") if known else None
        running = sorted(path.parent for path in job.state.glob("trials/*/run.json"))
        began = _stamp(job.state / RUN)
        running = [folder for folder in running if _stamp(folder / RUN) >= began]
        ended = max([rows, *(int(folder.name) for folder in running[:1])])
        done = float(ended)
        for folder in running:
            seeds = [job.folder / trial_path(int(folder.name)) / f"seed{seed}" for seed in range(tune.seeds)]
            live = [folder / seed.name for seed in seeds]
            now = sum(self._of_training(path, job.recipe.epochs).fraction for path in live if (path / RUN).exists())
            done += min(now + sum(_stamp(seed / RUN) >= began for seed in seeds), tune.seeds) / tune.seeds
        accuracy = f"best {float(best):.1f} %" if best else ""
        shown = min(ended + max(len(running), 1), tune.trials)
        return Progress(min(done / tune.trials, 1.0), f"trial {shown}/{tune.trials}", accuracy)

    def _last_row(self, live: Path) -> _Known | None:
        """Return the last row of a live history, and its last validation; None before this attempt has written it."""
        path = live / HISTORY
        stamp = _stamp(path)
        if stamp == 0 or stamp < _stamp(live / RUN):
            return None
        known = self._known.get(path)
        if known and known.stamp == stamp:
            return known
        rows = _last_rows(path)
        if not rows:
            return known
        validated = next((row["val_top1"] for row in reversed(rows) if row.get("val_top1")), None)
        self._known[path] = _Known(stamp, rows[-1], validated or (known.validated if known else None))
        return self._known[path]


def name_of(piece: Piece, several_pairs: bool) -> tuple[str, str]:
    """Return what a job is, and which: 'student', 'kd seed 3'."""
    what = NAMES.get(piece.rule, piece.rule)
    if not piece.paths:
        return what, ""
    parts = list(Path(piece.paths[0]).parts)
    seeds = [Path(path).name.removeprefix("seed") for path in piece.paths]
    match parts[1:]:
        case ["teachers", teacher, _]:
            return what, f"{teacher} seed {seeds[0]}"
        case ["students", pair, label, _]:
            words = f"{label} seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
            return what, f"{pair} {words}" if several_pairs else words
        case ["tune", pair, label]:
            return what, f"{pair} {label}" if several_pairs else label
        case ["export", pair]:
            return what, pair
    return what, ""


def live_trainings(experiment: Experiment) -> list[Piece]:
    """Return the trainings and studies that a process is working on now."""
    jobs = [*experiment.studies, *experiment.trained]
    live = [job for job in jobs if (STATE / job.path / RUN).exists() and files.held(STATE / job.path / LOCK)]
    return [Piece(RULES[type(job)], (job.path,)) for job in live]


def live_seconds(piece: Piece) -> float | None:
    """Return how long a training has run in this attempt, which may have waited before; None if it does not run."""
    stamp = _stamp(STATE / piece.paths[0] / RUN) if piece.paths else 0
    return max(time.time() - stamp / 1e9, 0.0) if stamp else None


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _benchmark_seconds(path: Path) -> float | None:
    with suppress(OSError, ValueError, KeyError, StopIteration), path.open() as file:
        return float(next(csv.DictReader(file, delimiter="\t"))["s"])
    return None


def _last_rows(path: Path) -> list[dict[str, str]]:
    """Return the last rows of a history without reading all of it."""
    try:
        with path.open("rb") as file:
            head = file.readline(HEAD)
            start = max(file.seek(0, os.SEEK_END) - TAIL, len(head))
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    header = head.decode(errors="replace").rstrip("\n").split(",")
    cells = [line.split(",") for line in (lines[1:] if start > len(head) else lines)]
    return [dict(zip(header, row, strict=True)) for row in cells if len(row) == len(header)]
