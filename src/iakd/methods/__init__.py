"""The ways to train a student: parts that can be added up by name."""

from iakd.methods.distillation import Distillation

__all__ = ["Distillation"]
