"""What the report shows, read from files: evaluations by pair, method and seed, gains over the references, studies."""

import statistics
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iakd import files
from iakd.config import Candidate, Method, Parameter, Params, Recipe
from iakd.config.methods import GROUP_TITLES
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, StudentJob, StudyJob, TeacherJob, as_trained
from iakd.experiment.run_dir import EVALUATION, HISTORY, METRICS, RUN, read_history
from iakd.reporting.statistics import PairedDifference, SeedMean, holm_rejections, paired_difference, seed_mean
from iakd.reporting.swapping import Added, SwapEffect, by_counterpart, swap_effects

TEACHER = "teacher"  # the method's name in a teacher's evaluation
MAX_UNGROUPED = 12  # methods: more are shown in groups

TrialRow = dict[str, Any]  # a row of trials.csv
PlannedCurve = tuple[NDArray[np.float64], NDArray[np.float64]]  # progress (E,), planned p of each block (E, blocks)
GainKey = tuple[str, frozenset[str]]  # a pair's name and the labels of two of its methods, in any order


@dataclass(frozen=True)
class ModelResults:
    """The files of one evaluated model: evaluation.json, run.json and metrics.json."""

    folder: Path
    seed: int
    evaluation: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class MethodResults:
    """One method of a pair over its seeds, or the teacher: without method, recipe and gains."""

    label: str
    method: Method | None  # with the pair's overrides, as `recipe`
    recipe: Recipe | None
    models: list[ModelResults]
    trained: Candidate | None = None  # with what a study has found
    gains: dict[str, PairedDifference] = field(default_factory=dict)  # by reference, except over itself

    @property
    def is_iakd(self) -> bool:
        """Whether the method swaps blocks during training."""
        return self.method is not None and self.method.swaps

    @property
    def kind(self) -> str:
        """'teacher', 'iakd' or 'other': decides colour and marker."""
        return "teacher" if self.method is None else "iakd" if self.is_iakd else "other"

    @property
    def imported_from(self) -> list[str]:
        """The checkpoint of an imported teacher with its SHA-256; empty if it was trained here."""
        records = [model.record for model in self.models if model.record.get("origin")]
        return [f"{record['origin']}, SHA-256 {record['inputs']['checkpoint']}" for record in records]

    @property
    def top1(self) -> SeedMean:
        """Test accuracy, percent."""
        return self.mean("top1")

    def mean(self, name: str) -> SeedMean:
        """Return the mean over the seeds of a number in the evaluations."""
        return seed_mean([model.evaluation[name] for model in self.models])

    def median(self, name: str) -> float:
        """Return the median over the seeds of a number in the evaluations, for times and sizes."""
        return statistics.median(model.evaluation[name] for model in self.models)

    @property
    def bit_widths(self) -> list[int]:
        """The bit-widths that the models can be switched between, highest first; [] if they cannot."""
        return [int(bits) for bits in self.models[0].evaluation.get("bit_widths", {})]

    def at_bits(self, bits: int, name: str) -> SeedMean:
        """Return the mean over the seeds of a number in the evaluations at one of several bit-widths."""
        return seed_mean([model.evaluation["bit_widths"][str(bits)][name] for model in self.models])

    @property
    def training_seconds(self) -> float:
        """Wall time of one training, the median over the seeds."""
        return statistics.median(model.record["wall_seconds"] for model in self.models)

    @cached_property
    def epoch_seconds(self) -> list[float]:
        """The time of each epoch without its validation, the median over the seeds: CPU time, or on a GPU wall time."""
        histories = [read_history(model.folder / HISTORY) for model in self.models]
        seeds = [[float(row.get("cpu_seconds", row["seconds"]) or 0) for row in history] for history in histories]
        return [statistics.median(times) for times in zip(*seeds, strict=True)]

    @property
    def devices(self) -> frozenset[str]:
        """What the seeds were trained on."""
        return frozenset(model.record["device"] for model in self.models)

    def top1_by_seed(self) -> dict[int, float]:
        """Return the test accuracy of each seed, percent."""
        return {model.seed: model.evaluation["top1"] for model in self.models}


@dataclass(frozen=True)
class PairComparison:
    """A teacher, a student, and all methods that trained this student, in the order of the settings."""

    teacher_name: str
    student_name: str
    teacher: MethodResults
    methods: list[MethodResults]

    @property
    def name(self) -> str:
        """As in the names of folders."""
        return f"{self.teacher_name}-{self.student_name}"

    @property
    def title(self) -> str:
        """As shown to readers."""
        return f"{self.teacher_name} → {self.student_name}"

    @property
    def ranked(self) -> list[MethodResults]:
        """The methods, most accurate first; ties in the order of the settings."""
        return sorted(self.methods, key=lambda method: -method.top1.mean)

    @property
    def best_of_each_kind(self) -> list[MethodResults]:
        """The most accurate method with swapping and the most accurate without, the better one first."""
        first = {results.is_iakd: results for results in reversed(self.ranked)}
        return [results for results in self.ranked if results is first[results.is_iakd]]

    @property
    def groups(self) -> list[tuple[str, list[MethodResults]]]:
        """Titles and methods of the groups, most accurate first both among and within them.

        A few methods form one group without a title.
        """
        if len(self.methods) <= MAX_UNGROUPED:
            return [("", self.ranked)]
        groups: dict[str, list[MethodResults]] = {}
        for results in self.ranked:
            assert results.method is not None
            groups.setdefault(GROUP_TITLES[results.method.group], []).append(results)
        return list(groups.items())

    @property
    def in_display_order(self) -> list[MethodResults]:
        """All methods, group by group."""
        return [results for _, group in self.groups for results in group]


def gain_key(pair: PairComparison, results: MethodResults, reference: str) -> GainKey:
    """Return the key of a gain, the same whichever of the two methods is the reference."""
    return pair.name, frozenset({results.label, reference})


def added_key(pair: PairComparison, added: Added) -> GainKey:
    """Return the key of what swapping added, among the gains."""
    return pair.name, frozenset({added.method, added.counterpart})


@dataclass(frozen=True)
class Comparison:
    """All pairs of an experiment."""

    params: Params
    pairs: list[PairComparison]

    @property
    def references(self) -> list[str]:
        """The reference methods that were trained."""
        return [label for label in self.params.report.references if label in self.params.methods]

    @property
    def missing_references(self) -> list[str]:
        """The reference methods that are not in the settings."""
        return [label for label in self.params.report.references if label not in self.params.methods]

    @property
    def models(self) -> list[ModelResults]:
        """Every model once, teachers first."""
        teachers = {pair.teacher_name: pair.teacher.models for pair in self.pairs}
        students = [results.models for pair in self.pairs for results in pair.methods]
        return [model for group in [*teachers.values(), *students] for model in group]

    @property
    def test_images(self) -> int:
        """Size of the test set."""
        return int(self.models[0].evaluation["n"])

    @property
    def digits(self) -> int:
        """Decimals of an accuracy in percent that a test set of this size can resolve."""
        return 1 if self.test_images < 5000 else 2

    @cached_property
    def swap_effects(self) -> dict[str, list[SwapEffect]]:
        """What swapping added, by the names of the pairs; the most accurate method first."""
        found = {}
        for pair in self.pairs:
            order = [results.label for results in pair.ranked]
            effects = swap_effects(pair.methods, self.params.report.confidence)
            found[pair.name] = sorted(effects, key=lambda effect: order.index(effect.method))
        return found

    def lead(self, pair: PairComparison) -> PairedDifference | None:
        """Return the best method with swapping minus the best without; None if one kind or a common seed is missing."""
        best = {results.is_iakd: results.top1_by_seed() for results in pair.best_of_each_kind}
        return paired_difference(best[True], best[False], self.params.report.confidence) if len(best) == 2 else None

    @cached_property
    def gains(self) -> dict[GainKey, PairedDifference]:
        """Every difference shown with an interval: leads, gains and effects of swapping.

        That between the same two methods counts once.
        """
        found: dict[GainKey, PairedDifference | None] = {}
        for pair in self.pairs:
            if len(pair.best_of_each_kind) == 2:
                better, worse = pair.best_of_each_kind
                found[gain_key(pair, better, worse.label)] = self.lead(pair)
            for results in pair.methods:
                found |= {gain_key(pair, results, reference): gain for reference, gain in results.gains.items()}
            found |= {added_key(pair, row): row.difference for row in by_counterpart(self.swap_effects[pair.name])}
        return {key: gain for key, gain in found.items() if gain and gain.p is not None}

    @cached_property
    def jointly_significant(self) -> set[GainKey]:
        """The gains that remain significant with Holm's correction for the number of `gains`."""
        rejected = holm_rejections([gain.p or 0.0 for gain in self.gains.values()], 1 - self.params.report.confidence)
        return {key for key, kept in zip(self.gains, rejected, strict=True) if kept}


@dataclass(frozen=True)
class StudyResults:
    """The trials of one study, `importances` (fractions of 1) and each trial's planned p over the training.

    The planned p is that of a trial's first seed; none where its method does not swap.
    """

    title: str
    seeds: int  # that a trial trains, unless it is pruned
    parameters: list[Parameter]
    trials: list[TrialRow]
    importances: dict[str, float]
    curves: dict[int, PlannedCurve]
    pareto_front: list[int]  # numbers of the trials that are good compromises; none with one objective

    @property
    def complete(self) -> list[TrialRow]:
        """The trials that trained to the end."""
        return [trial for trial in self.trials if trial["state"] == "complete"]

    @property
    def best(self) -> TrialRow | None:
        """The complete trial with the highest value, the earliest of equals."""
        return max(self.complete, key=lambda trial: (trial["value"], -trial["number"]), default=None)

    @property
    def varied(self) -> list[Parameter]:
        """The settings in which trials differ."""
        return [one for one in self.parameters if len({trial.get(one.name) for trial in self.trials} - {None}) > 1]

    @property
    def epochs(self) -> int:
        """Epochs that all trials trained together."""
        return sum(trial.get("epochs") or 0 for trial in self.trials)


def read_comparison(experiment: Experiment) -> Comparison:
    """Read the evaluations of all models. Raises UserError naming the first that is missing or outdated."""
    by_teacher: dict[str, list[ModelResults]] = {}
    for taught in experiment.teachers:
        by_teacher.setdefault(taught.network.name, []).append(_read_model(taught))
    by_pair: dict[tuple[str, str], dict[str, MethodResults]] = {}
    for job in experiment.students:
        by_label = by_pair.setdefault((job.teacher.network.name, job.student.name), {})
        model = _read_model(job)
        used = as_trained(job, model.record)
        trained = Candidate(used.method, used.recipe)
        results = by_label.setdefault(job.label, MethodResults(job.label, job.method, job.recipe, [], trained))
        results.models.append(model)
    pairs = [
        PairComparison(
            teacher,
            student,
            MethodResults(TEACHER, None, None, by_teacher[teacher]),
            _with_gains(experiment.params, by_label),
        )
        for (teacher, student), by_label in by_pair.items()
    ]
    return Comparison(experiment.params, pairs)


def _read_model(job: TeacherJob | StudentJob) -> ModelResults:
    hint = "run `iakd evaluate`"
    evaluation = files.read_json(job.folder / EVALUATION, hint)
    record = files.read_json(job.folder / RUN, hint)
    if evaluation["model_sha256"] != record["model_sha256"]:
        raise UserError(f"{job.folder / EVALUATION} belongs to an older model: {hint}")
    return ModelResults(job.folder, job.seed, evaluation, record, files.read_json(job.folder / METRICS, hint))


def _with_gains(params: Params, by_label: dict[str, MethodResults]) -> list[MethodResults]:
    methods = []
    for label, results in by_label.items():
        gains = {}
        for reference in params.report.references:
            if reference in by_label and reference != label:
                scores, reference_scores = results.top1_by_seed(), by_label[reference].top1_by_seed()
                gain = paired_difference(scores, reference_scores, params.report.confidence)
                if gain:
                    gains[reference] = gain
        methods.append(replace(results, gains=gains))
    return methods


def read_study(job: StudyJob, seeds: int, trials: list[TrialRow], importances: dict[str, float]) -> StudyResults:
    """Combine a study's trials and importances with the histories of its trials, read from its folder."""
    curves = {}
    for trial in trials:
        path = job.folder / "trials" / f"{trial['number']:04d}" / "seed0" / HISTORY
        if path.exists() and (curve := _planned_curve(path, job.recipe.epochs)):
            curves[trial["number"]] = curve
    title = f"{job.label}, {job.teacher.network.name} → {job.student.name}"
    metrics = files.read_json(job.folder / METRICS, "run `iakd tune`")
    front = metrics.get("pareto_front", [])
    return StudyResults(title, seeds, job.space.parameters, trials, importances, curves, front)


def _planned_curve(path: Path, epochs: int) -> PlannedCurve | None:
    rows = read_history(path)
    blocks = [name for name in (rows[0] if rows else {}) if name.startswith("p_planned_")]
    if not blocks:
        return None
    table = np.array([[row["epoch"], *(row[name] for name in blocks)] for row in rows], dtype=np.float64)
    return table[:, 0] / epochs, table[:, 1:]
