"""Images that look alike and are on two sides of a split."""

import io
from pathlib import Path

import kinds
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from iakd.config import Dataset
from iakd.data import sources
from iakd.data.perceptual_hash import MAX_DISTANCE, nearest, perceptual_hashes
from iakd.data.store import PreparedData
from iakd.data.writer import write_store

SIDE = 40


def photo(seed: int) -> Image.Image:
    """A picture as cameras make them: large shapes, and ever weaker detail."""
    rng = np.random.default_rng(seed)
    layers = [(4, 90.0), (9, 40.0), (20, 20.0)]
    image = np.full((SIDE, SIDE, 3), 128.0)
    for side, strength in layers:
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += (np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255.0 - 0.5) * 2 * strength
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 5, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


ALIKE = {
    "compressed": lambda image: jpeg(image, 50),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "scaled": lambda image: image.resize((SIDE // 2, SIDE // 2)).resize((SIDE, SIDE)),
    "noisy": noisy,
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


@pytest.mark.parametrize("kind", ALIKE)
def test_what_looks_alike_is_found_and_nothing_else(kind: str) -> None:
    images = [photo(seed) for seed in range(60)]
    changed = [ALIKE[kind](image) for image in images[:30]]
    found = nearest(perceptual_hashes(pixels(changed)), perceptual_hashes(pixels(images)))
    assert (found == np.arange(30)).mean() > 0.96
    assert (nearest(perceptual_hashes(pixels(images[30:])), perceptual_hashes(pixels(images[:30]))) == -1).all()


def test_the_nearest_is_that_of_the_fewest_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iakd.data.perceptual_hash.BLOCK", 7)  # several blocks each way
    rng = np.random.default_rng(0)
    others = rng.integers(0, 2**63, (40, 4), dtype=np.uint64)
    hashes = others[rng.integers(0, 40, 50)]
    for row, flips in zip(hashes, rng.integers(0, 70, 50), strict=True):
        for bit in rng.permutation(256)[:flips]:
            row[bit // 64] ^= np.uint64(1 << int(bit % 64))
    distance = np.array(
        [[sum(int(a ^ b).bit_count() for a, b in zip(x, y, strict=True)) for y in others] for x in hashes]
    )
    wanted = np.where(distance.min(1) <= MAX_DISTANCE, distance.argmin(1), -1)
    assert nearest(hashes, others).tolist() == wanted.tolist()
    assert 0 < (wanted >= 0).sum() < 50


def test_blank_images_resemble_nothing() -> None:
    blank = np.full((3, 3, SIDE, SIDE), 7, np.uint8)
    blank[1:, :, 0, 0] = 9
    assert (nearest(perceptual_hashes(blank), perceptual_hashes(blank)) == -1).all()


@pytest.mark.parametrize("storage", ["array", "files"])
def test_the_manifest_counts_them(storage: str, tmp_path: Path) -> None:
    number = 0
    for part, seeds in (("train", range(12)), ("val", range(12, 16)), ("test", range(16, 24))):
        for seed in seeds:
            folder = tmp_path / "photos" / part / "ab"[seed % 2]
            folder.mkdir(parents=True, exist_ok=True)
            photo(seed).save(folder / f"{seed:02}.png")
    for number, (kind, change) in enumerate(ALIKE.items()):  # of images of train, in test
        change(photo(number)).save(tmp_path / "photos/test/a" / f"x {kind}.png")
    photo(2).save(tmp_path / "photos/test/a/copy.png")
    chosen = Dataset.model_validate(
        {"source": "image_folder", "path": str(tmp_path / "photos"), "size": SIDE, "storage": storage}
    )
    write_store(tmp_path / "data", sources.read(chosen), chosen)
    manifest = PreparedData.open(tmp_path / "data").manifest
    counted = {(one["split"], one["of"]): one["n"] for one in manifest["near_duplicates"]}
    assert counted == {("val", "train"): 0, ("test", "train"): len(ALIKE), ("test", "val"): 0}
    assert "6 of 15 test images look like train images (perceptual hash)" in manifest["problems"]
    assert "1 of 15 test images are exact copies of train images" in manifest["problems"]
    examples = next(one["examples"] for one in manifest["near_duplicates"] if one["n"])
    assert len(examples) == 6 and all(position < 15 and other < 12 for position, other in examples)


def test_tiny_images_are_not_compared(tmp_path: Path) -> None:
    for name in "ab":
        kinds.unpacked(tmp_path, {f"photos/{name}/{n}.png": kinds.png(kinds.pixels(1, n)[0]) for n in range(9)})
    chosen = Dataset.model_validate({"source": "image_folder", "path": str(tmp_path / "photos"), "size": 8})
    write_store(tmp_path / "data", sources.read(chosen), chosen)
    assert PreparedData.open(tmp_path / "data").manifest["near_duplicates"] is None
