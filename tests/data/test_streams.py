"""Seeds by name."""

import subprocess
import sys

import numpy as np
import pytest

from iakd.seeding import derive


def test_a_seed_depends_on_its_parts_and_nothing_else() -> None:
    assert derive("order", 0, 1) == derive("order", 0, 1) == 5235859805464026190
    code = "from iakd.seeding import derive; print(derive('order', 0, 1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive("order", 0, 1)


def test_seeds_of_different_parts_differ_and_fit_in_63_bits() -> None:
    parts = [(name, seed, epoch) for name in ("order", "augment") for seed in range(20) for epoch in range(20)]
    parts += [("order",), ("order", 0), ("ord", "er", 0), ("order0",), ("order", "0")]
    seeds = {derive(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert min(seeds) >= 0 and 2**62 < max(seeds) < 2**63


def test_numpy_integers_are_the_same_parts_and_floats_are_refused() -> None:
    assert derive("order", np.int64(7)) == derive("order", 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive("order", 7.0)  # type: ignore[arg-type]
