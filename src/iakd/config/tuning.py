"""How studies search for the best settings of a method; `config.search_space` has what one method's study searches."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from iakd.config.base import MOST_PROCESSES, Fraction, Seed, Strict, explain
from iakd.config.schedule import KINDS, Schedule, ScheduleKind

Number = int | float


def stored(value: Any) -> bool | Number | str:
    """Return a choice as Optuna stores it, which is as JSON unless it is a number, a text, true or false."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


class Candidates(Strict):
    """The values of one setting that a study chooses from; short forms: [low, high], or a list of choices."""

    choices: list[Any] | None = Field(None, min_length=1, description="values to choose from, of any type")
    low: Number | None = Field(None, description="lowest value; whole for a setting that is a whole number")
    high: Number | None = Field(None, description="highest value")
    log: bool = Field(False, description="search the range on a logarithmic scale")
    step: Number | None = Field(None, gt=0, description="search low, low + step, …; default: any value")
    when: dict[str, Any] = Field(
        {}, description="other settings of the method → a value or a list: search only with these; default: always"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
        return {"low": value[0], "high": value[1]} if len(numbers) == len(value) == 2 else {"choices": list(value)}

    @model_validator(mode="after")
    def _choices_or_range(self) -> "Candidates":
        if (self.choices is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("needs low and high, or choices")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step are for a range, not for choices")
            if len({(type(one), one) for one in map(stored, self.choices)}) < len(self.choices):
                raise ValueError("names a choice twice")
            return self
        assert self.low is not None and self.high is not None
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0, and no step")
        return self


class _AlsoList:
    """The short forms of `Candidates` in the JSON schema."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "array", "items": {}}]}


def _by_dotted_name(value: Any) -> Any:
    """Flatten nested sections to dotted names: --set methods.LABEL.tune.kd.temperature=[1, 16] makes such."""
    if not isinstance(value, dict):
        return value
    flat: dict[Any, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner and not inner.keys() & Candidates.model_fields.keys():
            flat |= {f"{name}.{rest}": one for rest, one in _by_dotted_name(inner).items()}
        else:
            flat[name] = inner
    return flat


SettingName = Annotated[str, Field(pattern=r"^[a-z_0-9]+(\.[a-z_0-9]+)*$")]  # recipe.lr
Searched = Annotated[
    dict[SettingName, Annotated[Candidates, _AlsoList]], BeforeValidator(_by_dotted_name)
]  # what a study searches, by dotted name


class Space(Strict):
    """The search space of tuned schedules: a list of choices, or [low, high], for each field of `Schedule`.

    A field is sampled only for the kinds that use it.
    """

    kind: list[ScheduleKind] = Field(list(KINDS), min_length=1, description="kinds to choose from")
    p0: tuple[Fraction, Fraction] = Field((0.1, 0.9), description="lowest and highest p0")
    p1: tuple[Fraction, Fraction] = Field((0.7, 1.0), description="lowest and highest p1")
    t_end: tuple[Fraction, Fraction] = Field((0.3, 1.0), description="lowest and highest t_end")
    slope: tuple[float, float] = Field((-0.6, 0.6), description="lowest and highest slope")
    student_only: tuple[Fraction, Fraction] = Field((0.0, 0.5), description="lowest and highest student_only")
    cycles: tuple[int, int] = Field((2, 5), description="lowest and highest cycles")
    steps: tuple[int, int] = Field((2, 6), description="lowest and highest steps")
    steepness: tuple[float, float] = Field((4.0, 16.0), description="lowest and highest steepness")

    @model_validator(mode="after")
    def _low_high(self) -> "Space":
        for name in type(self).model_fields:
            if name != "kind":
                low, high = getattr(self, name)
                if low > high:
                    raise ValueError(f"{name}: low {low} is above high {high}")
                for bound in (low, high):
                    try:
                        Schedule.model_validate({name: bound})
                    except ValidationError as error:
                        raise ValueError(f"{name}: not a valid schedule ({explain(error, Schedule)})") from None
        return self


class Sampler(Strict):
    """How a study proposes settings."""

    kind: Literal["tpe", "random"] = Field("tpe", description="sampler of Optuna")
    startup: int = Field(8, ge=0, description="tpe: random trials before the model is used")
    multivariate: bool = Field(True, description="tpe: model the settings together")
    candidates: int = Field(
        24, gt=0, le=10_000, description="tpe: candidates per trial, of which the most promising one is tried"
    )


class Pruner(Strict):
    """When a study prunes a trial: `kind` while its first seed trains and after it, `wilcoxon` after further seeds."""

    kind: Literal["median", "hyperband", "none"] = Field(
        "median", description="pruner of Optuna over the epochs of a trial's first seed; none: train all seeds"
    )
    startup: int = Field(8, ge=0, description="median: complete trials before any is pruned")
    warmup: Fraction = Field(0.4, description="median: fraction of the epochs before any trial is pruned")
    reduction: int = Field(3, gt=1, description="hyperband: one trial in this many survives each rung")
    wilcoxon: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="prune after a seed if a signed-rank test against the best trial, seed by seed, has a smaller p; "
        "after n seeds p is at least 0.5^n, so 0.1 needs 5 seeds: the 4 before the last one; default: no test",
    )


class Tune(Strict):
    """The search for the best settings of methods, the same budget for each; read by `iakd tune`."""

    trials: int = Field(24, gt=0, description="per pair and tuned method; raise it later and the studies resume")
    seeds: int = Field(
        3, gt=0, description="students that each trial trains; the mean of their validation accuracy is maximised"
    )
    objective: Literal["accuracy", "balanced_accuracy", "accuracy_and_macs"] = Field(
        "accuracy",
        description="balanced_accuracy: the mean accuracy of the classes; accuracy_and_macs: search for good "
        "compromises with the multiply–accumulates of a training; not with a pruner; students get the most accurate "
        "settings all the same",
    )
    workers: int = Field(
        2, gt=0, le=MOST_PROCESSES, description="parallel processes; they change the time, not the results"
    )
    generation: int = Field(
        8, gt=0, description="trials proposed together, from the results of all earlier generations"
    )
    seed: Seed = Field(0, description="of the sampler and of the students that trials train")
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    space: Space = Space()
    storage: str | None = Field(None, description="postgresql+psycopg://…; default: a journal file")
    recipe: dict[str, Any] = Field({}, description="overrides of distill.recipe, for instance fewer epochs")

    @model_validator(mode="after")
    def _can_prune(self) -> "Tune":
        if self.several_objectives and (self.pruner.kind != "none" or self.pruner.wilcoxon is not None):
            raise ValueError(
                f"objective: {self.objective}: Optuna cannot prune with two objectives; set pruner to {{kind: none}}"
            )
        p, least = self.pruner.wilcoxon, 0.5 ** (self.seeds - 1)
        if p is not None and p <= least:
            enough = next(seeds for seeds in range(3, 999) if 0.5 ** (seeds - 1) < p)
            raise ValueError(
                f"pruner.wilcoxon: {p:g} can never be reached with {self.seeds} seeds: before the last one, "
                f"p is at least {least:g}; set seeds to {enough} or more, or wilcoxon to null"
            )
        return self

    @property
    def several_objectives(self) -> bool:
        """Whether a trial is worth more than one number."""
        return self.objective == "accuracy_and_macs"

    @property
    def measure(self) -> str:
        """What of a validation a trial is judged by: its name in the history and the metrics of a training."""
        return "val_balanced_accuracy" if self.objective == "balanced_accuracy" else "val_top1"

    @field_validator("storage")
    @classmethod
    def _is_supported(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("postgresql+"):
            kind = value.partition(":")[0]
            use = "use postgresql+psycopg://USER@HOST/DATABASE, or null for a journal file"
            raise ValueError(f"{kind!r} is not supported; {use}")
        return value
