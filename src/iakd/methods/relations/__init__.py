"""Methods that look at relations between images."""

from iakd.methods.part import Part
from iakd.methods.relations.crd import Crd

PARTS: dict[str, type[Part]] = {
    "crd": Crd,
}
