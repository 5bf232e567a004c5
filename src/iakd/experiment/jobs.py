"""The jobs of an experiment: its data, teachers, studies and students, where each is stored and what it depends on.

Both Snakemake's rules and the command line use this module, so they always agree.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iakd.config import (
    METHODS,
    SOURCES,
    Method,
    Network,
    Normalisation,
    Only,
    Pair,
    Params,
    Recipe,
    SearchSpace,
    Teacher,
    did_you_mean,
)
from iakd.config.search_space import SCHEDULE, first_schedules
from iakd.errors import UserError
from iakd.experiment.provenance import source_sha
from iakd.files import digest

RESULTS = Path("results")
SHORT = 16  # characters of a digest that people see
STATE = Path(".state")  # checkpoints, live histories, locks: outside what workflow engines delete
WORKFLOW_LOCK = STATE / "workflow.lock"  # held while a workflow runs in this folder
LOGS = Path("logs")  # of the workflow's jobs, with a benchmark of each, which Snakemake counts among its outputs


@dataclass(frozen=True)
class Job:
    """A piece of work with its own folder."""

    path: str  # below results/ and .state/
    stage: str
    settings: dict[str, Any]  # everything its outcome depends on, except for data, inputs and source

    @property
    def folder(self) -> Path:
        """The folder of its products."""
        return RESULTS / self.path

    @property
    def state(self) -> Path:
        """The folder of what it needs to resume after an interruption."""
        return STATE / self.path

    @property
    def key(self) -> str:
        """Identity of settings and source code together."""
        return digest({"settings": self.settings, "source": self.source})

    @property
    def source(self) -> str:
        """SHA-256 of the source code that it runs."""
        return source_sha(f"iakd.stages.{self.stage}", *self.modules)

    @property
    def modules(self) -> list[str]:
        """Modules that its stage loads by name only."""
        return []

    @property
    def watched(self) -> list[str]:
        """What a workflow engine compares to decide whether to run the job again: `name=value` texts."""
        return in_the_clear(self._by_section, self.source)

    @property
    def _by_section(self) -> dict[str, Any]:
        """The settings, named as in params.yaml where they come from one section."""
        others = {name: value for name, value in self.settings.items() if name != "data"}
        return {"dataset": self.settings["data"], **others}


@dataclass(frozen=True)
class DataJob(Job):
    """The preparation of the data set."""

    @property
    def modules(self) -> list[str]:
        """The module of its reader."""
        return [SOURCES[self.settings["source"]].reader.partition(":")[0]]

    @property
    def _by_section(self) -> dict[str, Any]:
        return {"dataset": self.settings}


@dataclass(frozen=True)
class TrainingJob(Job):
    """A network to be trained."""

    @property
    def command(self) -> str:
        """The command that trains it."""
        raise NotImplementedError

    def check_record(self, record: dict[str, Any], data: Path, data_sha256: str) -> None:
        """Raise UserError if its run.json, `record`, is of other settings than these, or of other data than are there.

        `data` is the folder of the prepared data, `data_sha256` their hash.
        """
        if not isinstance(record["params"], dict):
            raise UserError(f"{self.folder / 'run.json'} is damaged (its params are no object): run `{self.command}`")
        if not record["params"].items() >= self.settings.items():
            raise UserError(f"{self.folder} was trained with other settings: run `{self.command}`")
        if record["data_sha256"] != data_sha256:
            raise UserError(f"{self.folder} was trained on other data than {data} holds: run `{self.command}`")


@dataclass(frozen=True)
class TeacherJob(TrainingJob):
    """A teacher to be trained or imported."""

    network: Teacher
    seed: int
    recipe: Recipe  # unused by an imported one, and not part of its settings

    @property
    def command(self) -> str:
        """The command that trains it."""
        return f"iakd teach --teacher {self.network.name} --seed {self.seed}"

    @property
    def modules(self) -> list[str]:
        """The modules that build its network."""
        return self.network.modules

    @property
    def normalisation(self) -> Normalisation | None:
        """The normalisation of the images that its stem expects; None: the data set's."""
        return self.network.own_normalisation

    def check_file(self) -> None:
        """Raise UserError if the checkpoint is a file that does not exist, or the callable in no module."""
        self.network.check_files()


@dataclass(frozen=True)
class PairJob(Job):
    """Students of one teacher, trained by one method."""

    teacher: TeacherJob
    student: Network
    label: str
    method: Method  # as it stands, with all that a study searches
    recipe: Recipe  # as it stands

    @property
    def pair(self) -> str:
        """TEACHER-STUDENT."""
        return f"{self.teacher.network.name}-{self.student.name}"

    @property
    def modules(self) -> list[str]:
        """The modules that build its networks, and those of its losses."""
        losses = [METHODS[name].loss for name in self.method.names]
        modules = {reference.partition(":")[0] for reference in losses if reference}
        return sorted({*modules, *self.student.modules, *(self.teacher.modules if self.method.needs_teacher else [])})

    @property
    def normalisation(self) -> Normalisation | None:
        """The normalisation of the images that the student's stem expects: the teacher's if it gets the teacher's stem.

        None: the data set's.
        """
        method = self.method
        takes_stem = method.init != "random" or ("iakd" in method.names and method.iakd.stem == "teacher")
        return self.teacher.normalisation if takes_stem else None

    @property
    def used(self) -> dict[str, Any]:
        """The settings of its trainings that a study may have found."""
        return {"method": self.method.settings(), "recipe": self.recipe.model_dump(mode="json")}

    def training_key(self, inputs: dict[str, str], seed: int, path: str) -> str:
        """Return the identity of one of its trainings, made from `inputs`."""
        return digest([self.key, inputs, self.used, seed, path])

    @property
    def _by_section(self) -> dict[str, Any]:
        return {**super()._by_section, "teacher": _without_data(self.settings["teacher"])}


@dataclass(frozen=True)
class StudyJob(PairJob):
    """A search for the best settings of one method, for one pair."""

    space: SearchSpace = field(compare=False)  # made from method, recipe and the settings
    first: list[dict[str, Any]]  # parameters of its first trials
    excluded: list[dict[str, Any]]  # schedules in the settings that the space excludes
    measure: str  # what of a validation its trials are judged by: a name in the history and the metrics of a training


@dataclass(frozen=True)
class StudentJob(PairJob, TrainingJob):
    """A student to be trained."""

    seed: int
    study: StudyJob | None  # which finds the settings that are tuned; until then, method and recipe are as they stand

    @property
    def command(self) -> str:
        """The command that trains it."""
        return f"iakd distill --pair {self.pair} --method {self.label} --seed {self.seed}"

    @property
    def _by_section(self) -> dict[str, Any]:
        """Without the seed, which is in the path, so that a different grouping of seeds re-runs nothing.

        A study shows its own settings; here a digest of them stands for it.
        """
        settings = super()._by_section
        settings["study"] = digest(self.settings["study"])[:SHORT] if self.study else None
        del settings["seed"]
        return settings


@dataclass(frozen=True)
class ExportJob(Job):
    """The export of models of one pair."""

    pair: str  # TEACHER-STUDENT
    students: list[StudentJob]  # those that can be exported
    named: bool  # of each method one seed; else only the best method's

    @property
    def modules(self) -> list[str]:
        """The modules that build the networks, and those of methods that may have changed them."""
        return sorted({module for job in self.students for module in job.modules})

    def model_key(self, trained: dict[str, Any]) -> str:
        """Return the identity of the export of one model, given its run.json."""
        return digest([self.settings["export"], self.source, trained["key"], trained["model_sha256"]])


@dataclass(frozen=True)
class Experiment:
    """All jobs of an experiment, or of the part of it that `only` names, in the order of the settings.

    `params` have the methods, pairs and seeds of this part.
    """

    params: Params
    data: DataJob
    teachers: list[TeacherJob]
    studies: list[StudyJob]
    students: list[StudentJob]
    exports: list[ExportJob]

    @property
    def trained(self) -> list[TeacherJob | StudentJob]:
        """Every job that produces a model."""
        return [*self.teachers, *self.students]

    @property
    def evaluation(self) -> Path:
        """The folder of the comparison of all models."""
        return RESULTS / self.params.dataset.name / "evaluation"

    @property
    def export_folder(self) -> Path:
        """The folder of the exported models, a folder per pair."""
        return RESULTS / self.params.dataset.name / "export"

    @property
    def graphs(self) -> Path:
        """The folder of ONNX files that are only measured."""
        return STATE / self.params.dataset.name / "export" / "graphs"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return RESULTS / self.params.dataset.name / "report"


def in_the_clear(settings: dict[str, Any], source: str) -> list[str]:
    """Return `section.name=value` for each of `settings`, and the start of the SHA-256 of the source code."""
    return [*_flat("", settings), f"source={source[:SHORT]}"]


def _flat(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for inner, its_value in value.items():
            yield from _flat(f"{name}.{inner}" if name else str(inner), its_value)
    else:
        yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def _without_data(teacher: dict[str, Any] | None) -> dict[str, Any] | None:
    """A teacher's settings without those of the data, which it shares with its students."""
    return teacher and {name: value for name, value in teacher.items() if name != "data"}


def plan_experiment(params: Params) -> Experiment:
    """Return the jobs of the experiment that the settings describe."""
    name = params.dataset.name
    data = DataJob(f"{name}/data", "prepare", params.dataset.model_dump(mode="json"))
    teachers = {network.name: _teachers(params, network, data) for network in params.teachers}
    networks = {network.name: network for network in params.students}
    studies: list[StudyJob] = []
    students: list[StudentJob] = []
    for pair in params.paired:
        network = networks[pair.student]
        taught_by = teachers[pair.teacher]
        methods = {label: params.method(pair, label) for label in params.methods}
        for label, method in methods.items():
            study = _study(params, pair, taught_by[0], network, methods, label) if method.tuned else None
            if study:
                studies.append(study)
            recipe = params.student_recipe(pair, method)
            for position, seed in enumerate(params.seeds_of(method)):
                teacher = taught_by[position % len(taught_by)]
                settings = _student_settings(params, teacher, network, method, recipe)
                if study:  # run.json says which method and recipe it found
                    settings = {name: value for name, value in settings.items() if name not in ("method", "recipe")}
                    settings["recipe_before_tuning"] = recipe.model_dump(mode="json")
                settings |= {"seed": seed, "study": study.settings if study else None}
                path = f"{name}/students/{pair.name}/{label}/seed{seed}"
                students.append(
                    StudentJob(path, "distill", settings, teacher, network, label, method, recipe, seed, study)
                )
    taught = list(chain.from_iterable(teachers.values()))
    if params.only != Only():  # the whole is planned first: a seed's teacher and a study's first trials depend on it
        students = [job for job in students if params.only.includes(job.pair, job.label, job.seed)]
        searched = {job.study.path for job in students if job.study}
        studies = [job for job in studies if job.path in searched]
        teaching = {job.teacher.path for job in (*students, *studies)}
        taught = [job for job in taught if job.path in teaching]
        params = params.part()
    return Experiment(params, data, taught, studies, students, _exports(params, data, students))


def _exports(params: Params, data: DataJob, students: list[StudentJob]) -> list[ExportJob]:
    named = params.export.named
    jobs = []
    for pair in dict.fromkeys(job.pair for job in students):
        of_pair = [job for job in students if job.pair == pair]
        if named is not None:
            wanted = {model.method: model.seed for model in named if model.pair == pair}
            of_pair = [job for job in of_pair if job.label in wanted and wanted[job.label] in (None, job.seed)]
        if of_pair:
            models = [f"{job.label}/seed{job.seed}" for job in of_pair]
            export = params.export.model_dump(mode="json", exclude={"models"})
            settings = {"data": data.settings, "export": export, "models": models}
            path = f"{params.dataset.name}/export/{pair}"
            jobs.append(ExportJob(path, "export", settings, pair, of_pair, named is not None))
    return jobs


def _teachers(params: Params, network: Teacher, data: DataJob) -> list[TeacherJob]:
    """Return one teacher per seed; an imported one is the same for all seeds and uses the folder of the first."""
    imported = network.imported
    shared: dict[str, Any] = {"data": data.settings, "network": network.model_dump(mode="json")}
    if not imported:
        shared["recipe"] = params.teach.recipe.model_dump(mode="json")
    return [
        TeacherJob(
            path=f"{params.dataset.name}/teachers/{network.name}/seed{seed}",
            stage="import_teacher" if imported else "teach",
            settings={**shared, "seed": seed},
            network=network,
            seed=seed,
            recipe=params.teach.recipe,
        )
        for seed in (params.teach.seeds[:1] if imported else params.teach.seeds)
    ]


def _study(
    params: Params, pair: Pair, teacher: TeacherJob, student: Network, methods: dict[str, Method], label: str
) -> StudyJob:
    method = methods[label]
    recipe = params.trial_recipe(pair, method)
    space = SearchSpace(method, recipe, params.tune)
    first, excluded = _first_trials(space, list(methods.values()))
    unused = {"trials", "workers", "storage", "recipe"} | (set() if method.tunes_schedule else {"space"})
    settings = {
        **_student_settings(params, teacher, student, method, recipe),
        "tune": params.tune.model_dump(mode="json", exclude=unused),
        "first": first,
    }
    path = f"{params.dataset.name}/tune/{teacher.network.name}-{student.name}/{label}"
    return StudyJob(
        path, "tune", settings, teacher, student, label, method, recipe, space, first, excluded, params.tune.measure
    )


def _first_trials(space: SearchSpace, methods: list[Method]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the parameters of a study's first trials, without duplicates, and the schedules outside its space.

    The method as it stands; a tuned schedule stands for the schedules in the settings.
    """
    starts: list[dict[str, Any]] = [{}]
    if space.method.tunes_schedule:
        starts = [{f"{SCHEDULE}.{name}": value for name, value in schedule} for schedule in first_schedules(methods)]
    first: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for start in starts:
        params, outside = space.params_of(start)
        if outside:
            excluded.append(start)
        elif params not in first:
            first.append(params)
    return first, excluded


def _student_settings(
    params: Params, teacher: TeacherJob, student: Network, method: Method, recipe: Recipe
) -> dict[str, Any]:
    return {
        "teacher": _as_students_see_it(teacher) if method.needs_teacher else None,
        "data": teacher.settings["data"],
        "network": student.model_dump(mode="json"),
        "transfer": params.distill.transfer,
        "method": method.settings(),
        "recipe": recipe.model_dump(mode="json"),
    }


def _as_students_see_it(teacher: TeacherJob) -> dict[str, Any]:
    """Return a teacher's settings without its checkpoint's path, as students identify its weights by their hash, and
    without what it was trained on, which changes no student.
    """
    unseen = ("checkpoint", "trained_on")
    network = {name: value for name, value in teacher.settings["network"].items() if name not in unseen}
    return {**teacher.settings, "network": network}


def as_trained(job: StudentJob, record: dict[str, Any]) -> StudentJob:
    """Return a student's job with the method and the recipe that its run.json says it was trained with.

    Raises UserError where it does not say it.
    """
    if job.study is None:
        return job
    try:
        used = record["params"]
        return replace(job, method=Method.model_validate(used["method"]), recipe=Recipe.model_validate(used["recipe"]))
    except (KeyError, ValidationError):
        what = f"{job.folder / 'run.json'} is damaged (no valid params.method and params.recipe)"
        raise UserError(f"{what}: delete {job.folder}, then run `{job.command}` and `iakd evaluate`") from None


def select(jobs: list[Any], kind: str, **wanted: Any) -> list[Any]:
    """Return the jobs whose attributes equal all `wanted`, or are in the list given; None or [] stands for any value.

    Raises UserError if there are none.
    """
    if not jobs:
        raise UserError(f"there is no {kind} in the settings")
    asked = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
    asked = {name: values for name, values in asked.items() if values and values != [None]}
    for name, values in asked.items():
        known = {_attribute(job, name) for job in jobs}
        for value in values:
            if value not in known:
                names = sorted(map(str, known))
                near = did_you_mean(str(value), names)
                raise UserError(f"--{name} {value}: no such {kind} in the settings{near}; known: {', '.join(names)}")
    chosen = [job for job in jobs if all(_attribute(job, name) in values for name, values in asked.items())]
    if not chosen:
        words = ", ".join(f"{name} {value}" for name, values in asked.items() for value in values)
        raise UserError(f"no {kind} in the settings has {words}")
    return chosen


def group_seeds(jobs: list[StudentJob], size: int) -> list[list[StudentJob]]:
    """Group students that differ only in the seed, up to `size` in a group, keeping their order."""
    alike = [list(group) for _, group in groupby(jobs, key=lambda job: Path(job.path).parent)]
    return [group[start : start + size] for group in alike for start in range(0, len(group), size)]


def _attribute(job: Any, name: str) -> Any:
    match name:
        case "teacher":
            return job.network.name
        case "method":
            return job.label
        case _:
            return getattr(job, name)
