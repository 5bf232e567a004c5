"""An experiment: all sections together, and what has to agree between them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from iakd.config.base import Amount, AutoOnOff, Label, Name, Seed, Strict, did_you_mean, explain, merged
from iakd.config.dataset import Dataset
from iakd.config.methods import Method
from iakd.config.networks import Network, Teacher
from iakd.config.training import Recipe
from iakd.config.tuning import Tune
from iakd.errors import UserError


class Teach(Strict):
    """How teachers are trained; read by `iakd teach`."""

    seeds: list[Seed] = Field(
        [0], min_length=1, description="one teacher each; students take them in turn; imported ones have no seed"
    )
    recipe: Recipe = Recipe()


class Distill(Strict):
    """Which students are trained, and how; read by `iakd distill`."""

    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    transfer: Amount | None = Field(
        None, description="training images that a student sees, drawn by class: a number, or a share; default: all"
    )
    recipe: Recipe = Recipe()


class Pair(Strict):
    """A teacher and a student, by name, and what is other for them than for all."""

    teacher: Name
    student: Name
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe")
    methods: dict[Label, dict[str, Any]] = Field({}, description="what differs from the options of methods, by label")

    @model_validator(mode="before")
    @classmethod
    def _from_names(cls, value: Any) -> Any:
        """[teacher, student]."""
        if isinstance(value, list | tuple) and len(value) == 2:
            return {"teacher": value[0], "student": value[1]}
        return value


class Evaluate(Strict):
    """The one look at the test set; read by `iakd evaluate`."""

    batch_size: int = Field(256, gt=0)
    latency_runs: int = Field(30, gt=0, description="timed runs; their median is reported")


class Report(Strict):
    """What the report compares; read by `iakd evaluate` and `iakd report`."""

    title: str = "Interactive knowledge distillation"
    references: list[Label] = Field(["scratch", "kd"], description="methods that the others' gains are measured from")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")


class Tracking(Strict):
    """MLflow as a view of the results; the environment's MLFLOW_TRACKING_URI goes before `uri`."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = Field("mlartifacts", description="folder or address for artifacts, where no server decides")
    experiment: str | None = Field(None, description="default: iakd-<dataset>")


class Compute(Strict):
    """The machine; none of it is part of a run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, gt=0, description="of torch on the CPU, per job; sums may round differently with others")
    processes: int = Field(
        1,
        gt=0,
        description="that share each training of iakd teach and distill, each with its threads or a GPU of its own; "
        "docs/parallel.md",
    )
    deterministic: bool = Field(True, description="on a GPU: the same seed gives the same bits, at some cost in speed")
    gpu_share: int = Field(1, gt=0, description="how many trainings share a GPU; small ones leave most of it idle")
    seeds_together: int = Field(
        1, gt=0, description="how many seeds of a student one process trains side by side, with the same results"
    )
    engine: Literal["auto", "eager", "graphs"] = Field(
        "auto", description="graphs: whole steps as CUDA graphs; auto: eager"
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto", description="memory layout of images and weights while training; auto: where it was measured quicker"
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="processes of each training that decode images which stay in their files (dataset.storage files); "
        "default: as many as there are cores; 0: none, the training does it itself",
    )
    checkpoint_seconds: float = Field(30.0, ge=0, description="between two checkpoints of a running training")
    teacher_cache: AutoOnOff = Field(
        "auto", description="keep the teacher's outputs on disk for other trainings; auto: where they would be used"
    )
    teacher_cache_gib: float = Field(8.0, gt=0, description="what they may take up, for each data set, in GiB")

    @field_validator("engine", mode="before")
    @classmethod
    def _compile_was_removed(cls, value: Any) -> Any:
        if value == "compile":
            raise ValueError("compile was removed, it never beat eager: set auto, or graphs on a GPU")
        return value

    @model_validator(mode="after")
    def _one_or_several(self) -> "Compute":
        if self.processes > 1 and self.seeds_together > 1:
            raise ValueError("processes share one training, seeds_together are several in one process: set one to 1")
        return self


class Params(Strict):
    """All settings of an experiment."""

    dataset: Dataset = Dataset()
    teachers: list[Teacher] = Field(min_length=1)
    students: list[Network] = Field(min_length=1)
    pairs: list[tuple[Name, Name] | Pair] | None = Field(
        None, description="[teacher, student] names, or these with what differs for them; default: all"
    )
    methods: dict[Label, Method] = Field(min_length=1)
    teach: Teach = Teach()
    tune: Tune = Tune()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()

    @field_validator("methods", mode="before")
    @classmethod
    def _label_is_default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            label: {"method": label, **(method or {})} if isinstance(method, dict | None) else method
            for label, method in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> "Params":
        roles: list[tuple[str, Sequence[Network]]] = [("teachers", self.teachers), ("students", self.students)]
        for role, networks in roles:
            names = [network.name for network in networks]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{role}: two are called {name!r}; give them a name")
        for pair in self.paired:
            for name, (_, networks) in zip((pair.teacher, pair.student), roles, strict=True):
                known = [network.name for network in networks]
                if name not in known:
                    raise ValueError(
                        f"pairs: no network {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                    )
            for label in pair.methods:
                if label not in self.methods:
                    known = list(self.methods)
                    raise ValueError(
                        f"pairs: no method {label!r}{did_you_mean(label, known)}; known: {', '.join(known)}"
                    )
            for label in self.methods:
                self._check_method(pair, label)
        return self

    def _check_method(self, pair: Pair, label: str) -> None:
        name = f"pairs: {pair.teacher}-{pair.student}"
        try:
            method = self.method(pair, label)
        except ValidationError as error:
            raise ValueError(f"{name}: methods.{label}.{explain(error, Method)}") from None
        try:
            self.student_recipe(pair, method)
        except ValidationError as error:
            where = f"{name}: recipe, or methods.{label}.recipe" if pair.recipe else f"methods.{label}.recipe"
            raise ValueError(f"{where}.{explain(error, Recipe)}") from None
        try:
            self.trial_recipe(pair, method)
        except ValidationError as error:
            raise ValueError(f"tune.recipe.{explain(error, Recipe)}") from None

    @property
    def paired(self) -> list[Pair]:
        """All pairs, in the order of the settings."""
        if self.pairs is None:
            return [Pair(teacher=t.name, student=s.name) for t in self.teachers for s in self.students]
        return [pair if isinstance(pair, Pair) else Pair.model_validate(pair) for pair in self.pairs]

    def method(self, pair: Pair, label: str) -> Method:
        """The method of this label, for this pair."""
        method = self.methods[label]
        changes = pair.methods.get(label)
        return Method.model_validate(merged(method.model_dump(exclude_unset=True), changes)) if changes else method

    def student_recipe(self, pair: Pair, method: Method) -> Recipe:
        """The recipe of a pair's students trained by `method`."""
        recipe = merged(merged(self.distill.recipe.model_dump(), pair.recipe), method.recipe)
        return Recipe.model_validate(recipe)

    def trial_recipe(self, pair: Pair, method: Method) -> Recipe:
        """The recipe of a study's trials."""
        return Recipe.model_validate(merged(self.student_recipe(pair, method).model_dump(), self.tune.recipe))


def network_called(name: str, role: Literal["teacher", "student"], settings: "Params | None") -> Network:
    """Return the network that `settings` call `name`, looking in `role` first; else the architecture of that name.

    Raises UserError for an unknown family of architectures.
    """
    if settings:
        ordered: list[Sequence[Network]] = [settings.teachers, settings.students]
        for network in chain(*(ordered if role == "teacher" else reversed(ordered))):
            if network.name == name:
                return network
    try:
        return Network.model_validate({"arch": name})
    except ValidationError as error:
        raise UserError(explain(error, Network)) from None
