"""Settings of the export: which models leave as files that run without this project."""

import re
from typing import Annotated, NamedTuple

from pydantic import Field

from iakd.config.base import AutoOnOff, Strict

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+-[A-Za-z0-9_.]+/[A-Za-z0-9_.+-]+(/seed\d+)?$")]


class NamedModel(NamedTuple):
    """A model in the settings; seed None: the best on the validation images."""

    pair: str  # TEACHER-STUDENT
    method: str
    seed: int | None


class Export(Strict):
    """Which models leave as files that run without this project; read by `iakd export`."""

    models: list[ModelName] | None = Field(
        None,
        description="TEACHER-STUDENT/METHOD, or TEACHER-STUDENT/METHOD/seed0, as in the path of the results; default: "
        "of each pair the method that is best on the validation images; [] exports nothing",
    )
    int8: AutoOnOff = Field(
        "auto",
        description="also as a model of 8-bit integers; auto: if that costs no more than max_drop and the file is "
        "smaller; a network with `bits` leaves with its own bits in any case",
    )
    max_drop: float = Field(
        1.0, ge=0, description="points of validation accuracy that int8 may cost to be kept where int8 is auto"
    )

    @property
    def named(self) -> list[NamedModel] | None:
        """The `models`, taken apart."""
        if self.models is None:
            return None
        found = []
        for name in self.models:
            match = re.fullmatch(r"([^/]+)/([^/]+)(?:/seed(\d+))?", name)
            assert match  # the pattern of ModelName
            found.append(NamedModel(match[1], match[2], None if match[3] is None else int(match[3])))
        return found
