"""Methods that choose or change what is trained on."""

from typing import Annotated

from pydantic import Field

from iakd.params.base import Fraction, Strict
from iakd.params.methods.entry import Entry


class Kcd(Strict):
    """Knowledge condensation: images that the student is sure of are dropped, and mixed into others."""

    every: int = Field(40, gt=0, description="epochs between two rankings of the images")
    drop: Fraction = Field(0.05, description="share of all images that each ranking drops")
    keep: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="share that stays at the least")
    exponent: float = Field(0.03, ge=0, description="of (times shown / every), by which the mean entropy is multiplied")
    mixed: Fraction = Field(0.7, description="weight of the last of the images that dropped ones are mixed into")


class DataOptions(Strict):
    """Sections of the methods in this module."""

    kcd: Kcd = Kcd()


METHODS: dict[str, Entry] = {
    "kcd": Entry(
        "fewer and fewer images, those that the student learns least from dropped, by any loss (Li et al. 2022)",
        "data",
        Kcd,
        needs_teacher=False,
        base="kd",
    ),
}
