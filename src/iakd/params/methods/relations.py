"""Methods that look at relations between images."""

from pydantic import Field

from iakd.params.base import Strict
from iakd.params.methods.entry import Entry


class Crd(Strict):
    """Contrastive representation distillation, CE + weight·contrastive."""

    weight: float = Field(0.8, ge=0)
    dim: int = Field(128, gt=0, description="of the embeddings that are compared")
    negatives: int = Field(16384, gt=0, description="images of other classes that each image is compared with")
    temperature: float = Field(0.07, gt=0)
    momentum: float = Field(0.5, ge=0, lt=1, description="share of its old value in an image's remembered embedding")


class RelationOptions(Strict):
    """Sections of the methods in this module."""

    crd: Crd = Crd()


METHODS: dict[str, Entry] = {
    "crd": Entry("embeddings told apart from those of other classes' images (Tian et al. 2020)", "relations", Crd),
}
