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


class Sp(Strict):
    """Similarity-preserving distillation: weight·‖G_s − G_t‖²/B², G the batch's row-normalised Gram matrix."""

    weight: float = Field(3000.0, ge=0)


class Cc(Strict):
    """Correlation congruence, between each two neighbours of the batch, of features embedded into `dim` numbers."""

    weight: float = Field(0.02, ge=0)
    dim: int = Field(128, gt=0)


class Rkd(Strict):
    """Relational distillation: distance_weight·L(distances) + angle_weight·L(angles), L smooth L1."""

    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)


class Pkt(Strict):
    """Probabilistic knowledge transfer: weight·mean of p_t·log(p_t/p_s), p from cosine similarities in the batch."""

    weight: float = Field(30000.0, ge=0)


class RelationOptions(Strict):
    """Sections of the methods in this module."""

    sp: Sp = Sp()
    cc: Cc = Cc()
    rkd: Rkd = Rkd()
    pkt: Pkt = Pkt()
    crd: Crd = Crd()


METHODS: dict[str, Entry] = {
    "sp": Entry("which images of a batch look alike, by their last maps (Tung and Mori 2019)", "relations", Sp),
    "cc": Entry("differences from the teacher correlate between neighbours (Peng et al. 2019)", "relations", Cc),
    "rkd": Entry("distances and angles between images (Park et al. 2019)", "relations", Rkd),
    "pkt": Entry("each image's distribution over its neighbours (Passalis and Tefas 2018)", "relations", Pkt),
    "crd": Entry("embeddings told apart from those of other classes' images (Tian et al. 2020)", "relations", Crd),
}
