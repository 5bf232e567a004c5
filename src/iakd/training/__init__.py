"""The one training loop, for teachers, students, baselines and interactive distillation alike."""
