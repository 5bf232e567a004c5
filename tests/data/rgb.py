"""A tiny data set in colour, higher than wide, with a test set of its own, and a experiment that uses it."""

import numpy as np

from iakd.config import Dataset, Params, Teacher
from iakd.config.dataset import SourceSpec
from iakd.data.source_data import SourceData
from iakd.experiment.jobs import Experiment, plan_experiment

CLASSES = ["ant", "bee", "cat"]
SHAPE = (3, 6, 4)


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) % len(CLASSES)


def raw(train: int = 60, test: int | None = 12) -> SourceData:
    if test is None:
        return SourceData(images(train, 0), labels(train), None, None, CLASSES)
    return SourceData(images(train, 0), labels(train), images(test, 1), labels(test), CLASSES)


def read(settings: Dataset) -> SourceData:
    return raw()


SPEC = SourceSpec("Tiny coloured images.", "rgb:read")


def settings(**changes: object) -> Dataset:
    return Dataset().model_copy(update={"name": "rgb", "source": "rgb", "val": 15, "test": 9, **changes})


def experiment(**changes: object) -> Experiment:
    network = Teacher(arch="resnet8")
    params = Params(teachers=[network], students=[network], methods={"scratch": {}})
    return plan_experiment(params.model_copy(update={"dataset": settings(**changes)}))
