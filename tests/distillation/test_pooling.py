"""Maps of different sizes, and the constant that keeps crd finite: cases that the files of their losses leave out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from iakd.distillation.losses.crd import contrast
from iakd.distillation.losses.maps import match_sizes, pool_to


@pytest.mark.parametrize("height", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6])
def test_pooling_to_any_size_is_adaptive_pooling(height: int, width: int) -> None:
    """Whether a side is a multiple of the new one is asked of each side alone."""
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pool_to(maps, (height, width)), F.adaptive_avg_pool2d(maps, (height, width)))
    turned = maps.transpose(2, 3)
    torch.testing.assert_close(pool_to(turned, (width, height)), F.adaptive_avg_pool2d(turned, (width, height)))


def test_each_side_takes_the_smaller_of_two_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, high = torch.randn(2, 3, 4, 6, generator=generator), torch.randn(2, 5, 8, 3, generator=generator)
    for one, other in ((wide, high), (high, wide)):
        for maps, original in zip(match_sizes(one, other), (one, other), strict=True):
            torch.testing.assert_close(maps, F.adaptive_avg_pool2d(original, (4, 3)))


def test_crd_adds_1e_7_to_the_share_of_noise() -> None:
    """As the authors' code does; with one negative of 200,000 images it changes the loss by a percent."""
    n, rng = 200_000, np.random.default_rng(0)
    anchors, bank = rng.normal(size=(3, 4)), rng.normal(size=(n, 4))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    chosen = rng.integers(0, n, (3, 2))
    exponentials = np.exp(np.einsum("bd,bkd->bk", anchors, bank[chosen]) / 0.5)
    x, c = exponentials / (n * exponentials.mean()), 1 / n
    expected = -np.mean(np.log(x[:, 0] / (x[:, 0] + c + 1e-7)) + np.log(c / (x[:, 1] + c + 1e-7)))
    tensors = (torch.tensor(array, dtype=torch.float32) for array in (anchors, bank))
    assert contrast(*tensors, torch.tensor(chosen), torch.zeros(()), 0.5).item() == pytest.approx(expected, rel=1e-3)
