"""A teacher, a student and images for both."""

import pytest
import torch
from small import network

from iakd import models


@pytest.fixture
def teacher() -> models.Network:
    return network("resnet20", seed=1).eval().requires_grad_(False)


@pytest.fixture
def student() -> models.Network:
    return network("resnet8", seed=2)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
