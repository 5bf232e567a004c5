"""Methods that look at intermediate features."""

from pydantic import Field

from iakd.params.base import Strict
from iakd.params.methods.entry import Entry


class Ot(Strict):
    """Optimal transport between feature vectors, CE + weight·Sinkhorn divergence."""

    weight: float = Field(0.1, ge=0)
    blur: float = Field(0.05, gt=0, description="square root of the entropic regularisation, in units of the features")


class FeatureOptions(Strict):
    """Sections of the methods in this module."""

    ot: Ot = Ot()


METHODS: dict[str, Entry] = {
    "ot": Entry("an image's feature vectors, moved onto the teacher's by optimal transport (OT-KD)", "features", Ot),
}
