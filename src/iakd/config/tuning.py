"""The search for a schedule."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from iakd.config.base import Fraction, Seed, Strict, explain
from iakd.config.schedule import KINDS, Schedule, ScheduleKind


class Space(Strict):
    """The search space of a study over `Schedule`: a list of choices, or [low, high]. Fields that a kind does
    not use are not sampled for it."""

    kind: list[ScheduleKind] = Field(list(KINDS), min_length=1)
    p0: tuple[Fraction, Fraction] = (0.1, 0.9)
    p1: tuple[Fraction, Fraction] = (0.7, 1.0)
    t_end: tuple[Fraction, Fraction] = (0.3, 1.0)
    slope: tuple[float, float] = (-0.6, 0.6)
    student_only: tuple[Fraction, Fraction] = (0.0, 0.5)
    cycles: tuple[int, int] = (2, 5)
    steps: tuple[int, int] = (2, 6)
    steepness: tuple[float, float] = (4.0, 16.0)

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
                        raise ValueError(f"{name}: no schedule can have it ({explain(error, Schedule)})") from None
        return self


class Sampler(Strict):
    """How a study proposes schedules."""

    kind: Literal["tpe", "random"] = "tpe"
    startup: int = Field(8, ge=0, description="tpe: trials drawn at random before the model is used")
    multivariate: bool = Field(True, description="tpe: model the settings together")
    candidates: int = Field(24, gt=0, description="tpe: draws of which the most promising is taken")


class Pruner(Strict):
    """When a study gives up on a trial."""

    kind: Literal["median", "hyperband", "none"] = "median"
    startup: int = Field(8, ge=0, description="median: finished trials before any is pruned")
    warmup: Fraction = Field(0.4, description="median: part of a training that is never pruned")
    reduction: int = Field(3, gt=1, description="hyperband")


class Tune(Strict):
    """The search for a swap-probability schedule; read by `iakd tune`."""

    trials: int = Field(24, gt=0, description="raise it later, and the study goes on where it was")
    workers: int = Field(2, gt=0, description="processes side by side; changes the time, not the outcome")
    generation: int = Field(8, gt=0, description="trials proposed together, from all generations before")
    seed: Seed = Field(0, description="of the sampler, and of the students it trains")
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    space: Space = Space()
    storage: str | None = Field(None, description="postgresql+psycopg://…; default: a journal file")
    recipe: dict[str, Any] = Field({}, description="what differs from distill.recipe, for instance fewer epochs")

    @field_validator("storage")
    @classmethod
    def _can_be_shared(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("postgresql+"):
            kind = value.partition(":")[0]
            lossy = kind.startswith("sqlite")
            why = "SQLite loses or stalls parallel workers" if lossy else f"{kind!r} is not supported"
            raise ValueError(f"{why}; use postgresql+psycopg://USER@HOST/DATABASE, or null for a journal file")
        return value
