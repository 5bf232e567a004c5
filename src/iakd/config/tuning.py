"""The search for a schedule."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from iakd.config.base import Fraction, Seed, Strict, explain
from iakd.config.schedule import KINDS, Schedule, ScheduleKind


class Space(Strict):
    """The search space of a study: a list of choices, or [low, high], for each field of `Schedule`.

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
    """How a study proposes schedules."""

    kind: Literal["tpe", "random"] = Field("tpe", description="sampler of Optuna")
    startup: int = Field(8, ge=0, description="tpe: random trials before the model is used")
    multivariate: bool = Field(True, description="tpe: model the settings together")
    candidates: int = Field(24, gt=0, description="tpe: candidates per trial, of which the most promising one is tried")


class Pruner(Strict):
    """When a study prunes a trial."""

    kind: Literal["median", "hyperband", "none"] = Field(
        "median", description="pruner of Optuna; none: train to the end"
    )
    startup: int = Field(8, ge=0, description="median: complete trials before any is pruned")
    warmup: Fraction = Field(0.4, description="median: fraction of the epochs before any trial is pruned")
    reduction: int = Field(3, gt=1, description="hyperband: one trial in this many survives each rung")


class Tune(Strict):
    """The search for a swap-probability schedule; read by `iakd tune`."""

    trials: int = Field(24, gt=0, description="raise it later and the study resumes")
    workers: int = Field(2, gt=0, description="parallel processes; they change the time, not the results")
    generation: int = Field(
        8, gt=0, description="trials proposed together, from the results of all earlier generations"
    )
    seed: Seed = Field(0, description="of the sampler and of the students it trains")
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    space: Space = Space()
    storage: str | None = Field(None, description="postgresql+psycopg://…; default: a journal file")
    recipe: dict[str, Any] = Field({}, description="overrides of distill.recipe, for instance fewer epochs")

    @field_validator("storage")
    @classmethod
    def _is_supported(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("postgresql+"):
            kind = value.partition(":")[0]
            use = "use postgresql+psycopg://USER@HOST/DATABASE, or null for a journal file"
            raise ValueError(f"{kind!r} is not supported; {use}")
        return value
