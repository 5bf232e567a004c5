"""Methods that choose or change what is trained on."""

from iakd.methods.data_side.kcd import Kcd
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "kcd": Kcd,
}
