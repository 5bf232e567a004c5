"""What a training sees of its frozen teacher at the end of the forward pass: computed, or taken from a cache."""

from iakd.distillation.teacher_cache.cache_dir import CacheDir
from iakd.distillation.teacher_cache.outputs import CachedTeacherOutputs, TeacherOutputs, outputs_suffice

__all__ = ["CacheDir", "CachedTeacherOutputs", "TeacherOutputs", "outputs_suffice"]
