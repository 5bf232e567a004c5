"""IAKD Pipeline: compress image classifiers by interactive knowledge distillation."""

__version__ = "0.1.0"
