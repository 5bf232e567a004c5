"""Lengths and directions whose gradients stay finite where a vector is zero."""

import torch
from torch import Tensor

TINY = 1e-24  # a squared length below this counts as zero


def length(vectors: Tensor, dim: int = -1) -> Tensor:
    """Euclidean lengths along `dim`, which is left out; the gradient at a zero vector is zero."""
    squares = vectors.square().sum(dim)
    return torch.where(squares > TINY, squares.clamp(min=TINY).sqrt(), 0.0)


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors along `dim` made one long; a zero vector stays zero, and its gradient is zero."""
    squares = vectors.square().sum(dim, keepdim=True)
    return torch.where(squares > TINY, vectors * squares.clamp(min=TINY).rsqrt(), 0.0)
