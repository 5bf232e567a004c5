"""The ways to train a student: parts that can be added up by name."""

from iakd.distillation.distiller import Distiller
from iakd.distillation.registry import timeline_of

__all__ = ["Distiller", "timeline_of"]
