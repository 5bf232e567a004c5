"""What a process that trains on the CPU does with memory."""

import ctypes
import resource

import pytest
import torch

from iakd.params import Compute
from iakd.training import device

MIB = 1 << 20


def page_faults(rounds: int) -> int:
    """Of taking and freeing what a step would, so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        tensors = [torch.ones(MIB) for _ in range(32)]  # 4 MiB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    device.set_up(Compute(device="cpu"))
    page_faults(1)
    assert page_faults(10) < 10 * 32 * 4 * MIB / 4096 / 10  # without it: all pages anew each time
