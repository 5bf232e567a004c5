"""The parts that a method expression such as `iakd+kd` adds up, by name; `params.METHODS` describes the same ones."""

from iakd.methods import data_side, features, logits, relations
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "iakd": Part,  # the cross-entropy of the hybrid network, which `Distillation` computes
    **logits.PARTS,
    **features.PARTS,
    **relations.PARTS,
    **data_side.PARTS,
}
