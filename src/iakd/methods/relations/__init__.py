"""Methods that look at relations between images."""

from iakd.methods.part import Part
from iakd.methods.relations.cc import Cc
from iakd.methods.relations.crd import Crd
from iakd.methods.relations.pkt import Pkt
from iakd.methods.relations.rkd import Rkd
from iakd.methods.relations.sp import Sp

PARTS: dict[str, type[Part]] = {
    "sp": Sp,
    "cc": Cc,
    "rkd": Rkd,
    "pkt": Pkt,
    "crd": Crd,
}
