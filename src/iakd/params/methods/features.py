"""Methods that look at intermediate features."""

from typing import Annotated

from pydantic import Field

from iakd.params.base import Strict
from iakd.params.methods import logits
from iakd.params.methods.entry import Entry


class Ot(Strict):
    """Optimal transport between feature vectors, CE + weight·Sinkhorn divergence."""

    weight: float = Field(0.1, ge=0)
    blur: float = Field(0.05, gt=0, description="square root of the entropic regularisation, in units of the features")


class Fitnet(Strict):
    """A hint: weight·MSE(regressor(student's maps), teacher's maps) at one level."""

    weight: float = Field(100.0, ge=0)
    level: int = Field(2, gt=0, description="the end of which stage of the student, from 1")


class At(Strict):
    """Attention transfer: weight·Σ MSE of normalised maps of squares, over the ends of all stages."""

    weight: float = Field(1000.0, ge=0)


class Nst(Strict):
    """Neuron selectivity transfer: weight·Σ squared maximum mean discrepancy between channels, over all stages."""

    weight: float = Field(50.0, ge=0)


class Vid(Strict):
    """Variational information distillation: weight·Σ −log q(teacher's maps | student's maps), over all stages."""

    weight: float = Field(1.0, ge=0)


class Reviewkd(Strict):
    """Knowledge review: min(epoch/warmup_epochs, 1)·weight·Σ hierarchical context losses of fused features."""

    weight: float = Field(1.0, ge=0, description="the authors use 0.6 to 8, by pair of networks")
    warmup_epochs: int = Field(20, ge=0)


class Simkd(Strict):
    """The teacher's classifier reused: weight·MSE between its last maps and the student's projected ones."""

    weight: float = Field(1.0, gt=0)
    factor: int = Field(2, gt=0, description="the projector narrows to this fraction of the teacher's channels")


class Hints(Strict):
    """Hints at the centres of clusters of the teacher's blocks, CE + weight·hint regression."""

    weight: float = Field(100.0, ge=0)
    points: int = Field(3, gt=0, description="clusters of the teacher's blocks, with a hint at the centre of each")
    images: int = Field(512, ge=4, description="training images on which the teacher's blocks are compared")


PRETRAIN = "share of the steps that make up the first phase"
Share = Annotated[float, Field(gt=0, le=1)]


class Ft(Strict):
    """Factor transfer: first a paraphraser learns the teacher's last maps, then weight·‖factors − factors‖₁."""

    weight: float = Field(200.0, ge=0)
    rate: Share = Field(0.5, description="channels of the factors, as a share of the teacher's")
    pretrain: Share = Field(0.125, description=PRETRAIN)


class Fsp(Strict):
    """Flow of the solution procedure: a first phase of weight·Σ MSE of products of channels, then labels."""

    weight: float = Field(1.0, gt=0)
    pretrain: Share = Field(0.125, description=PRETRAIN)


class Ab(Strict):
    """Activation boundaries: a first phase of weight·Σ distances from the teacher's side of zero, then labels."""

    weight: float = Field(1.0, gt=0)
    margin: float = Field(1.0, ge=0)
    pretrain: Share = Field(0.125, description=PRETRAIN)


class FeatureOptions(Strict):
    """Sections of the methods in this module."""

    fitnet: Fitnet = Fitnet()
    at: At = At()
    nst: Nst = Nst()
    vid: Vid = Vid()
    ft: Ft = Ft()
    fsp: Fsp = Fsp()
    ab: Ab = Ab()
    reviewkd: Reviewkd = Reviewkd()
    simkd: Simkd = Simkd()
    ot: Ot = Ot()
    hints: Hints = Hints()


METHODS: dict[str, Entry] = {
    "fitnet": Entry(
        "the teacher's maps at one level, predicted from the student's (Romero et al. 2015)", "features", Fitnet
    ),
    "at": Entry("where in the image the features are strong (Zagoruyko and Komodakis 2017)", "features", At),
    "nst": Entry("which places the channels select, as a distribution (Huang and Wang 2017)", "features", Nst),
    "vid": Entry("information that the student's maps hold on the teacher's (Ahn et al. 2019)", "features", Vid),
    "ft": Entry("the teacher's last maps, paraphrased in fewer channels (Kim et al. 2018)", "features", Ft),
    "fsp": Entry("products of successive maps, in a first phase (Yim et al. 2017)", "features", Fsp),
    "ab": Entry("which neurons are on, in a first phase (Heo et al. 2019)", "features", Ab),
    "reviewkd": Entry("features fused from the last level to the first (Chen et al. 2021)", "features", Reviewkd),
    "simkd": Entry(
        "the teacher's classifier behind a projector, which stay in the student (Chen et al. 2022)",
        "features",
        Simkd,
        refuses=dict.fromkeys(logits.METHODS, "its outputs are the teacher's classifier's, not the student's own"),
    ),
    "ot": Entry("an image's feature vectors, moved onto the teacher's by optimal transport (OT-KD)", "features", Ot),
    "hints": Entry(
        "features regressed at the centres of clusters of the teacher's blocks (PURSUhInT)", "features", Hints
    ),
}
