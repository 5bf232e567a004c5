"""Make a folder of images in groups: `python examples/frames.py frames` makes frames/<digit>/<digit>-<track>/<n>.png.

Each track has thirty frames of one handwritten digit of scikit-learn, as if a camera moved past it: shifted, turned,
lighter or darker, with noise. docs/data.md uses them to show what a random split of such frames is worth.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TRACKS, FRAMES, SIDE = 6, 30, 16  # tracks per digit, frames per track, pixels


def main(root: Path) -> None:
    """Write the frames below `root`."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    for digit in range(10):
        chosen = np.flatnonzero(digits.target == digit)[:TRACKS]
        for track, image in enumerate(digits.images[chosen]):
            folder = root / str(digit) / f"{digit}-{track:02}"
            folder.mkdir(parents=True, exist_ok=True)
            large = Image.fromarray((image * 15).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            for frame in range(FRAMES):
                shift = tuple(rng.integers(-1, 2, 2).tolist())
                turned = large.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR, translate=shift)
                pixels = np.asarray(turned) * rng.uniform(0.8, 1.1) + rng.normal(0, 12, (SIDE, SIDE))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{frame:02}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
