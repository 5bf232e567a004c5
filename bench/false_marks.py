"""How often a report shows a ✓ where no method is better than another, now and with what it did before.

    python bench/false_marks.py [--reports 1000] [--out FILE]

Simulates whole reports, image by image, with the formulas of `iakd.reporting.statistics`. All methods have the same
true accuracy. Whether a student of a method and a seed classifies an image correctly depends on the image, on what the
method is good at, on chance in this training and this image, and on how well this training went as a whole. `before`
is the paired t test over the seeds alone (certain if all differences are equal), with Holm's correction for the
differences that the tables show; its headline was not corrected at all. A quarter of an hour on one core.
"""

import argparse
import zlib
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import common
from iakd import files
from iakd.reporting.statistics import MIN_SEEDS, errors

LEVEL = 0.05
SEEDS, METHODS, IMAGES = (2, 3, 5, 8), (2, 9, 20), (200, 2000, 10_000)
EFFECT = 3.0  # points by which the last method is better, to see how often that is found
BEST = 99.9  # but not better than this, percent

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class World:
    """Accuracy in percent; shares of the variance of an image's score; `spread`: standard deviation over the seeds."""

    accuracy: float = 93.0
    of_image: float = 0.85  # hard for all students
    of_method: float = 0.05  # hard for students of one method; the rest is chance in one training
    spread: float = 0.5  # points of accuracy
    unstable: float = 1.0  # how many times as large it is for the second method


WORLDS = {
    "typical": World(),
    "no spread of seeds": World(spread=0.0),
    "wide spread of seeds": World(spread=3.0),
    "methods good at different images": World(of_method=0.14),
    "99.5 % accuracy": World(accuracy=99.5, spread=0.1),
    "one unstable method": World(unstable=6.0),
}


@dataclass(frozen=True)
class Marks:
    """Whether a report has a ✓ and a winner in its headline, before and now; and whether the last method has its ✓."""

    before: bool
    headline_before: bool
    now: bool
    found: bool


def simulate(rng: np.random.Generator, world: World, methods: int, seeds: int, images: int, effect: float) -> Marks:
    """Make up one report and mark it."""
    correct = _draw(rng, world, methods, seeds, images, effect)
    by_seed = correct.mean(2, dtype=np.float64)  # (methods, seeds)
    over_seeds = correct.sum(1)  # (methods, images)
    image_products = (over_seeds @ over_seeds.T).astype(np.float64) / seeds**2
    products = sum(correct[:, seed] @ correct[:, seed].T for seed in range(seeds)).astype(np.float64)

    swaps = np.arange(methods) >= methods - methods // 2  # the last half; the first two are the references
    references = {0, 1} if methods > 2 else {0}
    accuracy = by_seed.mean(1)
    rivals = frozenset(int(np.flatnonzero(kind)[accuracy[kind].argmax()]) for kind in (swaps, ~swaps))
    pairs = [
        pair for pair in combinations(range(methods), 2) if swaps[pair[0]] != swaps[pair[1]] or set(pair) & references
    ]
    first, second = np.array(pairs).T
    d = by_seed[first] - by_seed[second]
    squares = [p[first, first] + p[second, second] - 2 * p[first, second] for p in (image_products, products)]
    half = errors(d, squares[0], squares[1], images).half_width(LEVEL / len(pairs))
    marked = (np.abs(d.mean(1)) > half) & (seeds >= MIN_SEEDS)  # any of them, exactly if Holm's first step rejects one

    shown = np.array([bool(set(pair) & references) or set(pair) == rivals for pair in pairs])
    p = _t_test(d)
    lead = [set(pair) == rivals for pair in pairs].index(True)
    wanted = pairs.index((0, methods - 1))
    return Marks(
        before=bool(p[shown].min() <= LEVEL / shown.sum()),
        headline_before=bool(p[lead] <= LEVEL),
        now=bool(marked.any()),
        found=bool(marked[wanted]),
    )


def _draw(
    rng: np.random.Generator, world: World, methods: int, seeds: int, images: int, effect: float
) -> NDArray[np.float32]:
    """Return 1 where a student is right and 0 where it is wrong, (methods, seeds, images)."""
    mean = np.full(methods, world.accuracy)
    mean[-1] = min(mean[-1] + effect, BEST)
    threshold = stats.norm.ppf(mean / 100)
    slope = 100 * stats.norm.pdf(stats.norm.ppf(world.accuracy / 100))  # points of accuracy for one of the score
    spread = np.full(methods, world.spread / slope)
    spread[1] *= world.unstable
    went = threshold[:, None] + spread[:, None] * rng.standard_normal((methods, seeds))
    score = np.float32((1 - world.of_image - world.of_method) ** 0.5) * rng.standard_normal(
        (methods, seeds, images), dtype=np.float32
    )
    score += np.float32(world.of_method**0.5) * rng.standard_normal((methods, 1, images), dtype=np.float32)
    score += np.float32(world.of_image**0.5) * rng.standard_normal(images, dtype=np.float32)
    return (score < went[:, :, None].astype(np.float32)).astype(np.float32)


def _t_test(d: Floats) -> Floats:
    """Return p of the paired t test; 0 for equal differences other than zero."""
    mean, error = d.mean(1), d.std(1, ddof=1) / d.shape[1] ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean) / error, d.shape[1] - 1)
    return np.where(error < 1e-12, np.where(np.abs(mean) < 1e-12, 1.0, 0.0), p)


def rates(name: str, methods: int, seeds: int, images: int, reports: int) -> dict[str, float]:
    """Return shares of reports in percent: with a false ✓ or winner, and where a real effect is found."""
    key = zlib.crc32(f"{name} {methods} {seeds} {images}".encode())
    rng, world = np.random.default_rng(key), WORLDS[name]
    null = [simulate(rng, world, methods, seeds, images, 0.0) for _ in range(reports)]
    better = [simulate(rng, world, methods, seeds, images, EFFECT) for _ in range(reports // 4)]
    return {
        "before": 100 * float(np.mean([marks.before for marks in null])),
        "headline_before": 100 * float(np.mean([marks.headline_before for marks in null])),
        "now": 100 * float(np.mean([marks.now for marks in null])),
        "found": 100 * float(np.mean([marks.found for marks in better])),
    }


def main() -> None:
    """Simulate, print tables, and write one file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=1000, help="of each kind")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = [("typical", methods, seeds, images) for seeds in SEEDS for methods in METHODS for images in IMAGES]
    cases += [(name, 9, seeds, images) for name in WORLDS for seeds in SEEDS for images in IMAGES[:2]]
    print("| world | seeds | methods | images | ✓ before | winner before | ✓ now | found now |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for name, methods, seeds, images in dict.fromkeys(cases):
        found = rates(name, methods, seeds, images, options.reports)
        rows.append({"world": name, "seeds": seeds, "methods": methods, "images": images, **found})
        shown = " | ".join(f"{value:.1f} %" for value in found.values())
        print(f"| {name} | {seeds} | {methods} | {images} | {shown} |", flush=True)
    if options.out:
        command = f"python bench/false_marks.py --reports {options.reports} --out {options.out}"
        about = {"machine": common.machine(), "commit": common.commit(), "command": command}
        worlds = {name: asdict(world) for name, world in WORLDS.items()}
        files.write_json(options.out, {**about, "level": LEVEL, "effect": EFFECT, "worlds": worlds, "results": rows})


if __name__ == "__main__":
    main()
