"""The message about a teacher that only guesses."""

from pathlib import Path

import numpy as np
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
