"""A tiny data set in colour, higher than wide, with a test set of its own, and a plan that uses it."""

import numpy as np

from iakd.data.raw import Raw
from iakd.params import Dataset, Params, Teacher
from iakd.plan import Plan, make_plan

CLASSES = ["ant", "bee", "cat"]
SHAPE = (3, 6, 4)


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) % len(CLASSES)


def raw(train: int = 60, test: int | None = 12) -> Raw:
    if test is None:
        return Raw(images(train, 0), labels(train), None, None, CLASSES)
    return Raw(images(train, 0), labels(train), images(test, 1), labels(test), CLASSES)


class Source:
    """Tiny coloured images."""

    def read(self, settings: Dataset) -> Raw:
        return raw()


def settings(**changes: object) -> Dataset:
    return Dataset().model_copy(update={"name": "rgb", "source": "rgb", "val": 15, "test": 9, **changes})


def plan(**changes: object) -> Plan:
    network = Teacher(arch="resnet8")
    params = Params(teachers=[network], students=[network], methods={"scratch": {}})
    return make_plan(params.model_copy(update={"dataset": settings(**changes)}))
