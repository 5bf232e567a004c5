"""A frozen teacher's logits and pooled features: computed, or read from a cache on disk."""

from iakd.distillation.teacher_cache.cache_dir import CacheDir
from iakd.distillation.teacher_cache.outputs import CachedTeacherOutputs, TeacherOutputs, outputs_suffice

__all__ = ["CacheDir", "CachedTeacherOutputs", "TeacherOutputs", "outputs_suffice"]
