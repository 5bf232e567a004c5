"""Handwritten digits: 1,797 grey images of 8×8 pixels (UCI repository), installed with scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np

from iakd.config import Dataset
from iakd.data.source_data import SourceData
from iakd.errors import UserError

SIDE, LEVELS = 8, 16  # pixels per side; the grey values run from 0 to 16


def read(settings: Dataset) -> SourceData:
    """Read the images of `sklearn.datasets.load_digits`, with grey values 0–16 stretched to 0–255.

    The stretched value is v·255/16, halves rounded up. Reads the installed file itself, because importing scikit-learn
    takes twenty times as long. Raises UserError if the file is missing or damaged.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("scikit-learn is not installed, which contains the digits: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): reinstall scikit-learn") from None
    values, labels = table[:, :-1], table[:, -1]
    images = (values * 255 + LEVELS // 2) // LEVELS
    return SourceData(
        train_images=images.astype(np.uint8).reshape(-1, 1, SIDE, SIDE),
        train_labels=np.ascontiguousarray(labels),
        test_images=None,
        test_labels=None,
        classes=[str(digit) for digit in range(10)],
    )
