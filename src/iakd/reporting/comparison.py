"""What an experiment compares, read from the evaluations: pairs, their methods, and the gains over the references."""

import statistics as stats
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Method, Params
from iakd.config.methods import GROUP_TITLES
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, StudentJob, TeacherJob
from iakd.experiment.run_dir import METRICS, RUN
from iakd.reporting.statistics import Difference, Mean, holm, mean, paired

EVALUATION = "evaluation.json"
TEACHER = "teacher"  # the method's name in a teacher's evaluation
MANY = 12  # methods: more are shown in groups


@dataclass(frozen=True)
class Result:
    """One finished and evaluated model: its evaluation.json, run.json and metrics.json."""

    folder: Path
    seed: int
    evaluation: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One method of a pair, over its seeds; the teacher is an entry without a method and without gains."""

    label: str
    method: Method | None
    results: list[Result]
    gains: dict[str, Difference] = field(default_factory=dict)  # by reference; over itself there is none

    @property
    def is_iakd(self) -> bool:
        """Whether blocks are swapped in its training."""
        return self.method is not None and "iakd" in self.method.names

    @property
    def imported_from(self) -> list[str]:
        """The checkpoint of an imported teacher and its SHA-256; nothing where it was trained here."""
        records = [result.record for result in self.results if result.record.get("origin")]
        return [f"{record['origin']}, SHA-256 {record['inputs']['checkpoint']}" for record in records]

    @property
    def top1(self) -> Mean:
        """Test accuracy, percent."""
        return self.mean("top1")

    def mean(self, name: str) -> Mean:
        """A number of the evaluations, over the seeds."""
        return mean([result.evaluation[name] for result in self.results])

    def median(self, name: str) -> float:
        """A number of the evaluations that varies by chance or not at all (times, sizes)."""
        return stats.median(result.evaluation[name] for result in self.results)

    @property
    def training_seconds(self) -> float:
        """Wall time of one training, the median over the seeds."""
        return stats.median(result.record["wall_seconds"] for result in self.results)

    def by_seed(self) -> dict[int, float]:
        """Test accuracy of each seed, percent."""
        return {result.seed: result.evaluation["top1"] for result in self.results}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and all ways in which that student was trained, in the order of the settings."""

    teacher_name: str
    student_name: str
    teacher: Entry
    entries: list[Entry]

    @property
    def name(self) -> str:
        """As in the folders' names."""
        return f"{self.teacher_name}-{self.student_name}"

    @property
    def title(self) -> str:
        """For readers."""
        return f"{self.teacher_name} → {self.student_name}"

    @property
    def ranked(self) -> list[Entry]:
        """The entries, the most accurate first; of equals, the one listed first."""
        return sorted(self.entries, key=lambda entry: -entry.top1.mean)

    @property
    def groups(self) -> list[tuple[str, list[Entry]]]:
        """As they are shown, with the groups' titles: the group of the most accurate first, and so within each.

        A few methods are one group without a title.
        """
        if len(self.entries) <= MANY:
            return [("", self.ranked)]
        groups: dict[str, list[Entry]] = {}
        for entry in self.ranked:
            assert entry.method is not None
            groups.setdefault(GROUP_TITLES[entry.method.group], []).append(entry)
        return list(groups.items())

    @property
    def shown(self) -> list[Entry]:
        """All entries in the order in which they are shown."""
        return [entry for _, entries in self.groups for entry in entries]


Between = tuple[str, frozenset[str]]  # a pair's name, and the labels of two of its methods


def between(pair: Pair, entry: Entry, reference: str) -> Between:
    """The name of a gain, whichever of the two is the reference."""
    return pair.name, frozenset({entry.label, reference})


@dataclass(frozen=True)
class Comparison:
    """All pairs of an experiment."""

    params: Params
    pairs: list[Pair]

    @property
    def references(self) -> list[str]:
        """The references that are among the methods."""
        return [label for label in self.params.report.references if label in self.params.methods]

    @property
    def missing_references(self) -> list[str]:
        """The references that nobody trained."""
        return [label for label in self.params.report.references if label not in self.params.methods]

    @property
    def results(self) -> list[Result]:
        """Every model once, teachers first."""
        teachers = {pair.teacher_name: pair.teacher.results for pair in self.pairs}
        students = [entry.results for pair in self.pairs for entry in pair.entries]
        return [result for group in [*teachers.values(), *students] for result in group]

    @property
    def test_images(self) -> int:
        """Size of the test set."""
        return int(self.results[0].evaluation["n"])

    @property
    def digits(self) -> int:
        """Decimals of an accuracy in percent that so many test images can resolve."""
        return 1 if self.test_images < 5000 else 2

    @cached_property
    def gains(self) -> dict[Between, Difference]:
        """Every gain that the report shows with an interval; the one between two references counts once."""
        return {
            between(pair, entry, reference): gain
            for pair in self.pairs
            for entry in pair.entries
            for reference, gain in entry.gains.items()
            if gain.p is not None
        }

    @cached_property
    def held(self) -> set[Between]:
        """Those of `gains` that stay certain when all of them are judged together (Holm)."""
        kept = holm([gain.p or 0.0 for gain in self.gains.values()], 1 - self.params.report.confidence)
        return {key for key, holds in zip(self.gains, kept, strict=True) if holds}


def read(experiment: Experiment) -> Comparison:
    """Read the evaluations of all models. Raises UserError naming the first that is missing or outdated."""
    by_teacher: dict[str, list[Result]] = {}
    for job in experiment.teachers:
        by_teacher.setdefault(job.network.name, []).append(_result(job))
    by_pair: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for student in experiment.students:
        labels = by_pair.setdefault((student.teacher.network.name, student.student.name), {})
        labels.setdefault(student.label, []).append(_result(student))
    pairs = [
        Pair(teacher, student, Entry(TEACHER, None, by_teacher[teacher]), _entries(experiment.params, labels))
        for (teacher, student), labels in by_pair.items()
    ]
    return Comparison(experiment.params, pairs)


def _result(job: TeacherJob | StudentJob) -> Result:
    hint = "run `iakd evaluate`"
    evaluation = files.read_json(job.folder / EVALUATION, hint)
    record = files.read_json(job.folder / RUN, hint)
    if evaluation["model_sha256"] != record["model_sha256"]:
        raise UserError(f"{job.folder / EVALUATION} is of an older model: {hint}")
    return Result(job.folder, job.seed, evaluation, record, files.read_json(job.folder / METRICS, hint))


def _entries(params: Params, labels: dict[str, list[Result]]) -> list[Entry]:
    plain = {label: Entry(label, params.methods[label], results) for label, results in labels.items()}
    entries = []
    for label, entry in plain.items():
        gains = {}
        for reference in params.report.references:
            if reference in plain and reference != label:
                gain = paired(entry.by_seed(), plain[reference].by_seed(), params.report.confidence)
                if gain:
                    gains[reference] = gain
        entries.append(Entry(label, entry.method, entry.results, gains))
    return entries
