"""IAKD Pipeline: compress image classifiers by interactive knowledge distillation.

What other programs can use is in `iakd.api`, and docs/api.md explains it. It is imported with the first use of one of
its names, because torch takes seconds to import.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Distilled",
    "Partition",
    "Prediction",
    "RunFailed",
    "SwappingStudent",
    "UserError",
    "distill",
    "hybrid",
    "load",
    "run",
]  # what iakd.api has


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("iakd.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
