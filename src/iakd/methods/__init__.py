"""The ways to train a student: parts that can be added up by name."""

from iakd.methods.distillation import Distillation
from iakd.methods.parts import timeline_of

__all__ = ["Distillation", "timeline_of"]
