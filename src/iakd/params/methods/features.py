"""Methods that look at intermediate features."""

from pydantic import Field

from iakd.params.base import Strict
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


class Hints(Strict):
    """Hints at the centres of clusters of the teacher's blocks, CE + weight·hint regression."""

    weight: float = Field(100.0, ge=0)
    points: int = Field(3, gt=0, description="clusters of the teacher's blocks, with a hint at the centre of each")
    images: int = Field(512, ge=4, description="training images on which the teacher's blocks are compared")


class FeatureOptions(Strict):
    """Sections of the methods in this module."""

    fitnet: Fitnet = Fitnet()
    at: At = At()
    nst: Nst = Nst()
    vid: Vid = Vid()
    ot: Ot = Ot()
    hints: Hints = Hints()


METHODS: dict[str, Entry] = {
    "fitnet": Entry(
        "the teacher's maps at one level, predicted from the student's (Romero et al. 2015)", "features", Fitnet
    ),
    "at": Entry("where in the image the features are strong (Zagoruyko and Komodakis 2017)", "features", At),
    "nst": Entry("which places the channels select, as a distribution (Huang and Wang 2017)", "features", Nst),
    "vid": Entry("information that the student's maps hold on the teacher's (Ahn et al. 2019)", "features", Vid),
    "ot": Entry("an image's feature vectors, moved onto the teacher's by optimal transport (OT-KD)", "features", Ot),
    "hints": Entry(
        "features regressed at the centres of clusters of the teacher's blocks (PURSUhInT)", "features", Hints
    ),
}
