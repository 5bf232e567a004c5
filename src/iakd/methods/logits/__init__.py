"""Methods that look at outputs alone."""

from iakd.methods.logits.kd import Kd
from iakd.methods.logits.label_smoothing import LabelSmoothing
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "scratch": Part,
    "label_smoothing": LabelSmoothing,
    "kd": Kd,
}
