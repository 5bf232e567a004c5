"""What a process that trains on the CPU does with memory."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from iakd import devices

def steps(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        tensors = [torch.ones(1 << 20) for _ in range(32)]  # 4 MiB each, freed together as a step frees its activations
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

devices.keep_freed_memory()
print(steps(1), steps(2), steps(10))
"""


def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    first, _, later = map(int, done.stdout.split())
    assert first > 30_000  # pages
    # Left to itself, glibc gives all pages back after each step, in many processes: `later` is then ten times `first`.
    # How few it can be depends on where the heap lies: up to two fifths of `first` were seen.
    assert later < first
