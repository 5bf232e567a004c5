"""Small folders of images whose files are kept, and the sets made from them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iakd.config import Dataset
from iakd.data import sources
from iakd.data.file_loader import FileLoader, make_loader
from iakd.data.store import PreparedData
from iakd.data.writer import write_store

SIDE = 8


def same_size(root: Path, per: int = 20) -> Path:
    """Three classes of PNG files of SIDE×SIDE pixels."""
    for position, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(position).integers(0, 256, (per, SIDE, SIDE, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(root / name / f"{number:02}.png")
    return root


def photo(height: int, width: int, seed: int) -> Image.Image:
    """A smooth picture, as JPEG likes them."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mixed(root: Path, per: int = 8) -> Path:
    """Three classes of JPEG files of many sizes, some grey, some CMYK."""
    for position, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per):
            seed = 100 * position + number
            image = photo(30 + 7 * (seed % 11), 25 + 9 * (seed % 7), seed)
            image = image.convert(["RGB", "RGB", "L", "CMYK"][number % 4])
            image.save(root / name / f"{number}.JPEG", "JPEG", quality=90)
    return root


def settings(root: Path, **changes: Any) -> Dataset:
    base = {"source": "image_folder", "path": str(root), "size": SIDE, "storage": "files", "val": 0.2, "test": 0.2}
    return Dataset.model_validate({**base, **changes})


def store(root: Path, folder: Path, **changes: Any) -> PreparedData:
    """The folder of images, prepared."""
    chosen = settings(root, **changes)
    write_store(folder, sources.read(chosen), chosen)
    return PreparedData.open(folder)


def streamed(store: PreparedData, workers: int = 0, split: str = "train") -> FileLoader:
    found = make_loader(store, split, "cpu", workers=workers)
    assert isinstance(found, FileLoader)
    return found
