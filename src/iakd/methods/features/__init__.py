"""Methods that look at intermediate features."""

from iakd.methods.features.ot import Ot
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "ot": Ot,
}
