"""An experiment: all sections together, and what has to agree between them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from iakd.params.base import Amount, Label, Name, Seed, Strict, did_you_mean, explain, merged
from iakd.params.dataset import Dataset
from iakd.params.methods import Method
from iakd.params.teacher import Teacher
from iakd.params.training import Network, Recipe
from iakd.params.tuning import Tune


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
    deterministic: bool = Field(True, description="on a GPU: the same seed gives the same bits, at some cost in speed")
    engine: Literal["auto", "eager", "compile", "graphs"] = Field(
        "auto", description="compile: blocks by torch.compile; graphs: whole steps as CUDA graphs; auto: eager"
    )
    channels_last: Literal["auto"] | bool = Field(
        "auto", description="memory layout of images and weights while training; auto: where it was measured quicker"
    )
    checkpoint_seconds: float = Field(30.0, ge=0, description="between two checkpoints of a running training")
    teacher_cache: Literal["auto", "on", "off"] = Field(
        "auto", description="keep the teacher's outputs on disk for other trainings; auto: where they would be used"
    )
    teacher_cache_gib: float = Field(8.0, gt=0, description="what they may take up, for each data set, in GiB")


class Params(Strict):
    """All settings of an experiment."""

    dataset: Dataset = Dataset()
    teachers: list[Teacher] = Field(min_length=1)
    students: list[Network] = Field(min_length=1)
    pairs: list[tuple[Name, Name]] | None = Field(None, description="[teacher, student] names; default: all")
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
        for teacher, student in self.pairs or []:
            for name, (_, networks) in zip((teacher, student), roles, strict=True):
                known = [network.name for network in networks]
                if name not in known:
                    raise ValueError(
                        f"pairs: no network {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
                    )
        for label, method in self.methods.items():
            try:
                self.student_recipe(method)
            except ValidationError as error:
                raise ValueError(f"methods.{label}.recipe.{explain(error, Recipe)}") from None
        try:
            self.trial_recipe(next(iter(self.methods.values())))
        except ValidationError as error:
            raise ValueError(f"tune.recipe.{explain(error, Recipe)}") from None
        return self

    def student_recipe(self, method: Method) -> Recipe:
        """The recipe of students trained by `method`."""
        return Recipe.model_validate(merged(self.distill.recipe.model_dump(), method.recipe))

    def trial_recipe(self, method: Method) -> Recipe:
        """The recipe of a study's trials."""
        return Recipe.model_validate(merged(self.student_recipe(method).model_dump(), self.tune.recipe))


def network_called(name: str, role: Literal["teacher", "student"], settings: "Params | None") -> Network:
    """The network that `settings` call `name`, those in this role first; otherwise the architecture of this name."""
    if settings:
        ordered: list[Sequence[Network]] = [settings.teachers, settings.students]
        for network in chain(*(ordered if role == "teacher" else reversed(ordered))):
            if network.name == name:
                return network
    return Network.model_validate({"arch": name})
