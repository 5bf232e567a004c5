"""The message about a teacher that only guesses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iakd import config, models
from iakd.data.source_data import SourceData
from iakd.data.store import PreparedData
from iakd.data.writer import write_store
from iakd.evaluation import plausibility


def test_what_chance_reaches_is_not_given_as_the_cause(tmp_path: Path) -> None:
    """Of two classes, guessing is half right in any order, so the order of classes explains nothing."""
    images, labels = np.full((40, 3, 8, 8), 100, np.uint8), np.arange(40) % 2
    settings = config.Dataset.model_validate({"source": "image_folder", "path": "x", "val": 20, "test": 10})
    write_store(tmp_path, SourceData(images, labels, None, None, ["a", "b"]), settings)
    store = PreparedData.open(tmp_path)
    network = models.build(config.Network.model_validate({"arch": "resnet8", "width": 2}), 3, 2)
    cause = plausibility.likely_cause(network.eval(), store, torch.device("cpu"))
    assert cause == "check normalisation, class order, channels (RGB or BGR) and image size"


def of_sizes(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("sizes", [(3, 3), (38, 2), (1, 1), (100, 100), (5, 0, 5), (900, 100)])
def test_a_network_that_is_always_right_is_not_near_chance_however_few_images_there_are(sizes: tuple[int, ...]) -> None:
    assert not plausibility.is_near_chance(1.0, 1.0, of_sizes(*sizes), len(sizes))


@pytest.mark.parametrize("sizes", [(3, 3), (38, 2), (100, 100), (5, 0, 5), (900, 100)])
def test_always_the_largest_class_is_chance(sizes: tuple[int, ...]) -> None:
    largest, present = max(sizes) / sum(sizes), sum(size > 0 for size in sizes)
    assert plausibility.is_near_chance(largest, 1 / present, of_sizes(*sizes), len(sizes))


def test_a_network_that_finds_the_rare_class_is_not_near_chance_though_guessing_is_right_more_often() -> None:
    labels = of_sizes(950, 50)
    assert not plausibility.is_near_chance(0.92, 0.92, labels, 2)
    assert plausibility.is_near_chance(0.92, 0.5, labels, 2)
