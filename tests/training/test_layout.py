"""The memory layout of a training."""

import pytest
import torch
from torch import nn

from iakd import config, models
from iakd.config import Compute
from iakd.devices import use_channels_last

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def network(**options: object) -> nn.Module:
    return models.build(config.Network(**options), 3, 10)


@pytest.mark.parametrize("setting", ["auto", True])
def test_never_where_a_narrow_strided_convolution_would_write_beyond_its_buffer(setting: object) -> None:
    """Otherwise a training of such a network on large maps dies of a segmentation fault, or worse, does not."""
    compute = Compute(channels_last=setting)
    narrow, wide = network(arch="resnet8", width=8), network(arch="resnet8", width=16)
    assert use_channels_last(compute, CPU, wide)
    assert not use_channels_last(compute, CPU, narrow)
    assert not use_channels_last(compute, CPU, nn.ModuleList([wide, narrow])), (
        "the gradient passes through the teacher, too"
    )
    assert use_channels_last(compute, GPU, narrow)
    assert use_channels_last(compute, CPU, network(arch="resnet8", width=8, shortcut="A"))


def test_as_the_settings_say_elsewhere() -> None:
    wide = [network(arch="resnet8")]
    assert not use_channels_last(Compute(channels_last=False), CPU, wide)
    assert not use_channels_last(Compute(channels_last=False), GPU, wide)
    assert use_channels_last(Compute(), GPU, wide)
