"""A loss and its gradient against a slow reference in float64 that was written from the formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
STEP = 1e-5  # of the finite differences


def agree(loss: Callable[..., Tensor], reference: Callable[..., Any], *arrays: Array, rel: float = 1e-3) -> None:
    """Compare `loss` at `arrays`, and its derivative by the first of them along some directions, with `reference`.

    The reference's derivative is its central difference.
    """
    first = torch.tensor(arrays[0], dtype=torch.float32, requires_grad=True)
    value = loss(first, *(torch.tensor(array, dtype=torch.float32) for array in arrays[1:]))
    assert value.dtype == torch.float32 and value.shape == ()
    assert value.item() == pytest.approx(float(reference(*arrays)), rel=rel, abs=1e-7)
    value.backward()
    assert first.grad is not None
    gradient = first.grad.double().numpy()
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = rng.normal(size=arrays[0].shape)
        direction /= np.linalg.norm(direction)
        ahead = reference(arrays[0] + STEP * direction, *arrays[1:])
        behind = reference(arrays[0] - STEP * direction, *arrays[1:])
        slope = (float(ahead) - float(behind)) / (2 * STEP)
        scale = float(np.linalg.norm(gradient))
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=rel, abs=rel * scale + 1e-7)


def finite(loss: Callable[..., Tensor], *tensors: Tensor) -> float:
    """The loss's value, after a check that it and its gradient are finite and float32."""
    first = tensors[0].detach().clone().requires_grad_()
    value = loss(first, *tensors[1:])
    assert value.dtype == torch.float32 and torch.isfinite(value)
    value.backward()
    assert first.grad is not None and torch.isfinite(first.grad).all()
    return value.item()
