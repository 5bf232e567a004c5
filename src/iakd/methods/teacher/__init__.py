"""What a training sees of its frozen teacher at the end of the forward pass: computed, or taken from a cache."""

from iakd.methods.teacher.cached import CachedOutputs
from iakd.methods.teacher.outputs import Outputs, suffice
from iakd.methods.teacher.shelf import Shelf

__all__ = ["CachedOutputs", "Outputs", "Shelf", "suffice"]
