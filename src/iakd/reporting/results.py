"""What the report shows, read from files: evaluations by pair, method and seed, their differences, studies."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from iakd import files
from iakd.config import Candidate, Method, Parameter, Params, Recipe, explain
from iakd.config.methods import GROUP_TITLES
from iakd.errors import UserError
from iakd.evaluation.metrics import unpack
from iakd.evaluation.record import MEASURED, network_key, read_evaluation, read_record
from iakd.experiment.jobs import Experiment, StudentJob, StudyJob, TeacherJob, as_trained
from iakd.experiment.run_dir import EVALUATION, HISTORY, METRICS, RUN, Row, damaged_products, merit, read_history
from iakd.reporting import formatting
from iakd.reporting.statistics import Correct, PairedDifference, SeedMean, judge, paired_difference, seed_mean
from iakd.reporting.swapping import SwapEffect, Trained, interactive, swap_effects

TEACHER = "teacher"  # the method's name in a teacher's evaluation
MAX_UNGROUPED = 12  # methods: more are shown in groups

Floats = NDArray[np.float64]
TrialRow = dict[str, Any]  # a row of trials.csv
PlannedCurve = tuple[Floats, Floats]  # progress (E,), planned p of each block (E, blocks)
Differences = Mapping[tuple[str, str, str], PairedDifference]  # by a pair's name, a method's label and another's


@dataclass(frozen=True)
class ModelResults:
    """The files of one evaluated model: evaluation.json, run.json and metrics.json; `command` trains it."""

    folder: Path
    seed: int
    evaluation: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, Any]
    command: str
    network: str = ""  # equal for the same network with other weights
    speed: Mapping[str, float] = field(default_factory=dict)  # of its network, if other models measured it, too

    def cost(self, name: str) -> float:
        """Return a number of the evaluation; a time is the median over all models with the same network."""
        return float(self.speed.get(name, self.evaluation[name]))

    @property
    def correct(self) -> Correct:
        """Whether each test image was classified correctly, (images,)."""
        return unpack(self.evaluation["correct"], self.evaluation["n"])

    def history(self) -> list[Row]:
        """Return the rows of history.csv. Raises UserError if it is missing, damaged or incomplete."""
        path, remedy = self.folder / HISTORY, _train_again(self.folder, self.command)
        rows = read_history(path)
        try:
            for number, row in enumerate(rows, 1):
                _HistoryRow.model_validate(row)
                if row["epoch"] != number:
                    raise ValueError(f"row {number} is of epoch {row['epoch']}")
            for name in ("val_top1", "peer_val_top1"):
                if name in self.metrics and (not rows or rows[-1].get(name) is None):
                    raise ValueError(f"its last epoch has no {name}")
        except ValidationError as error:
            raise UserError(f"{path} is damaged (row {number}: {explain(error, _HistoryRow)}): {remedy}") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): {remedy}") from None
        return rows


class _Damageable(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _HistoryRow(_Damageable):
    epoch: int
    loss: float
    seconds: float
    cpu_seconds: float | None = None
    val_top1: float | None = None


class _Inputs(_Damageable):
    checkpoint: str | None = None


class _RunRecord(_Damageable):
    model_sha256: str
    wall_seconds: float
    device: str
    versions: dict[str, str]
    git_commit: str | None
    lock_sha256: str | None
    started: str
    finished: str
    params: dict[str, Any]
    inputs: _Inputs


class _Metrics(_Damageable):
    val_top1: float


@dataclass(frozen=True)
class MethodResults:
    """One method of a pair over its seeds, or the teacher: without method, recipe and gains."""

    label: str
    method: Method | None  # with the pair's overrides, as `recipe`
    recipe: Recipe | None
    models: list[ModelResults]
    trained: Candidate | None = None  # with what a study has found
    gains: dict[str, PairedDifference] = field(default_factory=dict)  # by reference, except over itself
    started_from: list[str] = field(default_factory=list)  # of a tuned one: the methods that its study tried first

    @property
    def interactive(self) -> bool:
        """Whether parts of the teacher are swapped into the student during the training."""
        return self.method is not None and interactive(self.method)

    @property
    def kind(self) -> str:
        """'teacher', 'iakd' or 'other': decides colour and marker."""
        return "teacher" if self.method is None else "iakd" if self.interactive else "other"

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

    def measures(self, name: str) -> bool:
        """Whether all evaluations have a number."""
        return all(model.evaluation.get(name) is not None for model in self.models)

    def median(self, name: str) -> float:
        """Return the median over the seeds of a time or size (`ModelResults.cost`)."""
        return statistics.median(model.cost(name) for model in self.models)

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
        seeds = [[float(row.get("cpu_seconds", row["seconds"]) or 0) for row in history] for history in self.histories]
        return [statistics.median(times) for times in zip(*seeds, strict=True)]

    @cached_property
    def histories(self) -> list[list[Row]]:
        """The history of each seed, all with the same epochs, validations and blocks.

        Raises UserError if one is damaged.
        """
        found = [model.history() for model in self.models]
        shapes = [_shape(rows) for rows in found]
        for model, shape in zip(self.models, shapes, strict=True):
            if shape != max(shapes):
                remedy = _train_again(model.folder, model.command)
                raise UserError(f"{model.folder / HISTORY} is damaged (it lacks what other seeds have): {remedy}")
        return found

    @property
    def devices(self) -> frozenset[str]:
        """What the seeds were trained on."""
        return frozenset(model.record["device"] for model in self.models)

    def top1_by_seed(self) -> dict[int, float]:
        """Return the test accuracy of each seed, percent."""
        return {model.seed: model.evaluation["top1"] for model in self.models}

    @cached_property
    def correct_by_seed(self) -> dict[int, Correct]:
        """For each seed, whether each test image was classified correctly, (images,)."""
        return {model.seed: model.correct for model in self.models}

    @property
    def confusion(self) -> Floats:
        """The number of test images by true and by predicted class, summed over the seeds, (classes, classes)."""
        return np.sum([model.evaluation["confusion"] for model in self.models], axis=0, dtype=np.float64)

    @property
    def per_class(self) -> Floats:
        """The mean accuracy over the seeds, percent, (classes,); nan for a class without test images."""
        rows = [model.evaluation["per_class_top1"] for model in self.models]
        return np.array([[np.nan if value is None else value for value in row] for row in rows]).mean(0)

    @property
    def merit(self) -> tuple[float, float]:
        """Accuracy and certainty on the validation images, means over the seeds; more is better."""
        top1, certainty = zip(*(merit(model.metrics) for model in self.models), strict=True)
        return statistics.fmean(top1), statistics.fmean(certainty)

    @property
    def deployed(self) -> ModelResults:
        """The model of the seed that is best on the validation images: the one that `iakd export` takes."""
        return max(self.models, key=lambda model: merit(model.metrics))

    @property
    def peer_top1(self) -> SeedMean | None:
        """Test accuracy of the networks that were trained beside the students, percent; None if there were none."""
        found = [model.evaluation["peer"]["top1"] for model in self.models if model.evaluation.get("peer")]
        return seed_mean(found) if found else None


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
    def recommended(self) -> MethodResults:
        """The contender that is best on the validation images, which may choose; `iakd export` chooses alike."""
        return max(self.contenders, key=lambda method: method.merit)

    @property
    def contenders(self) -> list[MethodResults]:
        """The methods with the most seeds: those with fewer would win more easily by luck."""
        most = max(len(method.models) for method in self.methods)
        return [method for method in self.methods if len(method.models) == most]

    @property
    def best_of_each_kind(self) -> list[MethodResults]:
        """The most accurate method with swapping and the most accurate without, the better one first."""
        first = {results.interactive: results for results in reversed(self.ranked)}
        return [results for results in self.ranked if results is first[results.interactive]]

    @property
    def rivals(self) -> list[MethodResults]:
        """The two methods that the headline compares, the better one first; one if there is no other."""
        best = self.best_of_each_kind
        return best if len(best) == 2 else self.ranked[:2]

    def compared(self, references: list[str]) -> list[tuple[MethodResults, MethodResults]]:
        """Return all pairs of methods that the report compares or might have compared, each once.

        The headline compares the best of each kind, so any method with swaps and any without might have been in it;
        with one kind only, any two. The others are the gains over the references.
        """
        kinds = {results.interactive for results in self.methods}
        return [
            (first, second)
            for first, second in combinations(self.methods, 2)
            if len(kinds) == 1
            or first.interactive != second.interactive
            or {first.label, second.label} & set(references)
        ]

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


@dataclass(frozen=True)
class Comparison:
    """All pairs of an experiment."""

    params: Params
    pairs: list[PairComparison]
    differences: Differences  # of all `compared` methods, in both directions

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
    def seeds_per_method(self) -> str:
        """How many students a method was trained for, in words: '5 seeds', or '3 to 5 seeds' if they differ."""
        counts = sorted({len(results.models) for pair in self.pairs for results in pair.methods})
        most = formatting.plural(counts[-1], "seed")
        return most if len(counts) == 1 else f"{counts[0]} to {most}"

    @property
    def test_images(self) -> int:
        """Size of the test set."""
        return int(self.models[0].evaluation["n"])

    @property
    def digits(self) -> int:
        """Decimals of an accuracy in percent that a test set of this size can resolve."""
        return formatting.digits(self.test_images)

    def difference(self, pair: PairComparison, first: str, second: str) -> PairedDifference | None:
        """Return the accuracy of one method minus that of another; None if they have no seed in common."""
        return self.differences.get((pair.name, first, second))

    @property
    def counted(self) -> list[PairedDifference]:
        """Every difference once that may be significant: those of enough seeds."""
        once = {(pair, frozenset(labels)): found for (pair, *labels), found in self.differences.items()}
        return [found for found in once.values() if found.p_adjusted is not None]

    @cached_property
    def swap_effects(self) -> dict[str, list[SwapEffect]]:
        """What swapping added, by the names of the pairs; the most accurate method first."""
        found = {}
        for pair in self.pairs:
            order = [results.label for results in pair.ranked]
            effects = swap_effects(pair.methods, partial(self._compare, pair))
            found[pair.name] = sorted(effects, key=lambda effect: order.index(effect.method))
        return found

    def _compare(self, pair: PairComparison, first: Trained, second: Trained) -> PairedDifference | None:
        return self.difference(pair, first.label, second.label)

    def tuning_effect(
        self, pair: PairComparison, tuned: MethodResults
    ) -> tuple[MethodResults, PairedDifference] | None:
        """Return the best method that a tuned one came from, and the tuned one minus it; None if there is none.

        The difference is not among those that are judged together, so it is never called significant.
        """
        origin = next((results for results in pair.ranked if results.label in tuned.started_from), None)
        if origin is None:
            return None
        confidence = self.params.report.confidence
        difference = paired_difference(tuned.correct_by_seed, origin.correct_by_seed, confidence)
        return (origin, difference) if difference else None

    def lead(self, pair: PairComparison) -> PairedDifference | None:
        """Return the best method with swapping minus the best without; None if one kind or a common seed is missing."""
        best = {results.interactive: results.label for results in pair.best_of_each_kind}
        return self.difference(pair, best[True], best[False]) if len(best) == 2 else None


@dataclass(frozen=True)
class StudyResults:
    """The trials of one study and each trial's planned p over the training.

    The planned p is that of a trial's first seed; none where its method does not swap. `importances` computes fractions
    of 1, with Optuna, which takes seconds to import.
    """

    pair: str
    label: str
    title: str
    seeds: int  # that a trial trains, unless it is pruned
    parameters: list[Parameter]
    trials: list[TrialRow]
    importances: Callable[[], dict[str, float]]
    curves: dict[int, PlannedCurve]
    pareto_front: list[int]  # numbers of the trials that are good compromises; none with one objective
    measure: str = "accuracy"  # what the trials are judged by, in words

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
        """The settings in which trials differ, of those that trained to the end: others have no accuracy to show."""
        return [one for one in self.parameters if len({trial.get(one.name) for trial in self.complete} - {None}) > 1]

    @property
    def epochs(self) -> int:
        """Epochs that all trials trained together."""
        return sum(trial.get("epochs") or 0 for trial in self.trials)


def percentages(confusion: Floats) -> Floats:
    """Return a confusion matrix in percent of each true class, (classes, classes)."""
    return 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def most_frequent(confusion: Floats) -> list[tuple[int, int]]:
    """Return true and predicted class of all mistakes, the most frequent first; of equals that of the rarer class."""
    true, found = np.nonzero(confusion * (1 - np.eye(len(confusion))))
    order = np.lexsort((-percentages(confusion)[true, found], -confusion[true, found]))
    return [(int(true[i]), int(found[i])) for i in order]


def read_comparison(experiment: Experiment) -> Comparison:
    """Read the evaluations of all models. Raises UserError naming the first that is missing, damaged or outdated."""
    models = _with_speeds({job.path: _read_model(job) for job in experiment.trained})
    by_teacher: dict[str, list[ModelResults]] = {}
    for taught in experiment.teachers:
        by_teacher.setdefault(taught.network.name, []).append(models[taught.path])
    by_pair: dict[tuple[str, str], dict[str, MethodResults]] = {}
    origins = {(study.pair, study.label): _origins(study, experiment.students) for study in experiment.studies}
    for job in experiment.students:
        by_label = by_pair.setdefault((job.teacher.network.name, job.student.name), {})
        model = models[job.path]
        trained = _trained(job, model)
        first = origins.get((job.pair, job.label), [])
        results = by_label.setdefault(
            job.label, MethodResults(job.label, job.method, job.recipe, [], trained, started_from=first)
        )
        results.models.append(model)
    pairs = [
        PairComparison(
            teacher, student, MethodResults(TEACHER, None, None, by_teacher[teacher]), list(by_label.values())
        )
        for (teacher, student), by_label in by_pair.items()
    ]
    comparison = Comparison(experiment.params, pairs, {})
    one, *others = comparison.models
    for other in others:  # differences are taken image by image
        if other.evaluation["data_sha256"] != one.evaluation["data_sha256"]:
            raise UserError(f"{other.folder / EVALUATION} is of other data than {one.folder}: run `iakd evaluate`")
    differences = _differences(comparison)
    return replace(
        comparison, pairs=[_with_gains(pair, comparison, differences) for pair in pairs], differences=differences
    )


def _origins(study: StudyJob, students: Sequence[StudentJob]) -> list[str]:
    """Return the untuned methods of the pair that are what the study's first trials tried, in the students' recipe."""
    tried = [study.space.candidate(params) for params in study.first]
    searched = [one.name for one in study.space.parameters if one.name.startswith("recipe.")]
    tuned = next((job for job in students if (job.pair, job.label) == (study.pair, study.label)), None)
    found: list[str] = []
    if tuned is None:
        return found
    for job in students:
        if job.pair != study.pair or job.method.tuned or job.label in found:
            continue
        own = Candidate(job.method, job.recipe)
        for candidate in tried:
            others = {"validate_every", *(name.split(".")[1] for name in searched)}
            same_recipe = job.recipe.model_dump(exclude=others) == tuned.recipe.model_dump(exclude=others)
            same_search = all(own.value(name) == candidate.value(name) for name in searched)
            if same_recipe and same_search and job.method.settings() == candidate.method.settings():
                found.append(job.label)
                break
    return found


def _shape(rows: list[Row]) -> tuple[int, int, list[str]]:
    """Return the numbers of epochs and of validations, and the names of the columns on blocks."""
    validated = sum(row.get("val_top1") is not None for row in rows)
    return len(rows), validated, sorted(name for name in rows[0] if name.startswith("p_"))


def _train_again(folder: Path, command: str) -> str:
    return f"delete {folder}, then run `{command}` and `iakd evaluate`"


def _read_model(job: TeacherJob | StudentJob) -> ModelResults:
    evaluate, command = "run `iakd evaluate`", job.command
    evaluation = read_evaluation(job.folder / EVALUATION, evaluate)
    record = _read_training(job.folder / RUN, _RunRecord, evaluate, command)
    changed = damaged_products(job.folder, record, only=(HISTORY, METRICS))
    if changed:
        remedy = _train_again(job.folder, command)
        raise UserError(f"{job.folder / changed[0]} is damaged (its SHA-256 is not the one in {RUN}): {remedy}")
    if evaluation["model_sha256"] != record["model_sha256"]:
        raise UserError(f"{job.folder / EVALUATION} belongs to an older model: {evaluate}")
    metrics = _read_training(job.folder / METRICS, _Metrics, _train_again(job.folder, command), command)
    network = network_key(job.network if isinstance(job, TeacherJob) else job.student, evaluation)
    return ModelResults(job.folder, job.seed, evaluation, record, metrics, command, network)


def _with_speeds(models: dict[str, ModelResults]) -> dict[str, ModelResults]:
    """Give all models that are the same network the same speeds: the weights have no influence on them.

    Each was measured when its job had its turn, beside whatever else ran on the machine.
    """
    alike: dict[tuple[str, str], list[ModelResults]] = {}
    for model in models.values():
        alike.setdefault(_measured_as(model), []).append(model)
    speeds = {
        of: {name: statistics.median(model.evaluation[name] for model in same) for name in MEASURED}
        for of, same in alike.items()
    }
    return {path: replace(model, speed=speeds[_measured_as(model)]) for path, model in models.items()}


def _measured_as(model: ModelResults) -> tuple[str, str]:
    return model.network, str(model.evaluation.get("device"))


def _read_training(path: Path, model: type[BaseModel], missing: str, command: str) -> dict[str, Any]:
    """Read a JSON file of a training; `missing` says what to do where it does not exist."""
    if not path.exists():
        raise UserError(f"{path} does not exist: {missing}")
    return read_record(path, model, _train_again(path.parent, command))


def _trained(job: StudentJob, model: ModelResults) -> Candidate:
    """Return method and recipe as trained, with what a study has found."""
    used = as_trained(job, model.record)
    return Candidate(used.method, used.recipe)


def _differences(comparison: Comparison) -> Differences:
    """Return the differences between all methods that are compared, in both directions, judged together."""
    confidence = comparison.params.report.confidence
    found: dict[tuple[str, str, str], PairedDifference] = {}
    for pair in comparison.pairs:
        for first, second in pair.compared(comparison.references):
            difference = paired_difference(first.correct_by_seed, second.correct_by_seed, confidence)
            if difference:
                found[pair.name, first.label, second.label] = difference
    judged = dict(zip(found, judge(list(found.values()), 1 - confidence), strict=True))
    return judged | {(pair, b, a): difference.reversed() for (pair, a, b), difference in judged.items()}


def _with_gains(pair: PairComparison, comparison: Comparison, differences: Differences) -> PairComparison:
    methods = []
    for results in pair.methods:
        found = {
            reference: differences.get((pair.name, results.label, reference)) for reference in comparison.references
        }
        methods.append(replace(results, gains={reference: gain for reference, gain in found.items() if gain}))
    return replace(pair, methods=methods)


def read_study(
    job: StudyJob, seeds: int, trials: list[TrialRow], importances: Callable[[], dict[str, float]]
) -> StudyResults:
    """Combine a study's trials with their histories, read from its folder."""
    curves = {}
    for trial in trials:
        path = job.folder / "trials" / f"{trial['number']:04d}" / "seed0" / HISTORY
        if path.exists() and (curve := _planned_curve(path, job.recipe.epochs)):
            curves[trial["number"]] = curve
    title = f"{job.label}, {job.teacher.network.name} → {job.student.name}"
    metrics = files.read_object(job.folder / METRICS, "run `iakd tune`")
    front = metrics.get("pareto_front", [])
    numbers = [trial["number"] for trial in trials]
    if not isinstance(front, list) or not all(number in numbers for number in front):
        raise UserError(f"{job.folder / METRICS} is damaged: delete it, then run `iakd tune`")
    measure = job.measure.removeprefix("val_").replace("top1", "accuracy").replace("_", " ")
    return StudyResults(
        job.pair, job.label, title, seeds, job.space.parameters, trials, importances, curves, front, measure
    )


def _planned_curve(path: Path, epochs: int) -> PlannedCurve | None:
    rows = read_history(path)
    blocks = [name for name in (rows[0] if rows else {}) if name.startswith("p_planned_")]
    if not blocks:
        return None
    table = np.array([[row["epoch"], *(row[name] for name in blocks)] for row in rows], dtype=np.float64)
    return table[:, 0] / epochs, table[:, 1:]
