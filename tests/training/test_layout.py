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
@pytest.mark.parametrize(
    ("processor", "least"),
    [({"avx2": True, "avx512_f": True}, 16), ({"avx2": True, "avx512_f": False}, 8), ({"neon": True}, 16), ({}, 16)],
)
def test_never_where_a_narrow_strided_convolution_would_write_beyond_its_buffer(
    setting: object, processor: dict[str, bool], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a training of such a network on large maps dies of a segmentation fault, or worse, does not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    compute = Compute(channels_last=setting)
    narrow, wide = network(arch="resnet8", width=least - 1), network(arch="resnet8", width=least)
    assert use_channels_last(compute, CPU, wide)
    assert not use_channels_last(compute, CPU, narrow)
    assert not use_channels_last(compute, CPU, nn.ModuleList([wide, narrow])), (
        "the gradient passes through the teacher, too"
    )
    assert use_channels_last(compute, GPU, narrow)
    assert use_channels_last(compute, CPU, network(arch="resnet8", width=least - 1, shortcut="A"))


def test_as_the_settings_say_elsewhere() -> None:
    wide = [network(arch="resnet8")]
    assert not use_channels_last(Compute(channels_last=False), CPU, wide)
    assert not use_channels_last(Compute(channels_last=False), GPU, wide)
    assert use_channels_last(Compute(), GPU, wide)
