"""Random streams by name: every draw in the project comes from a seed made here, so none disturbs another."""

import hashlib
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*parts: str | int) -> int:
    """A 63-bit seed from a stream's name, a seed, an epoch …: the SHA-256 of the parts.

    Stateless: the same parts give the same seed in every process and on every machine. Integers
    count by value (a numpy integer is the same part as a Python one); other types are a TypeError.
    """
    named = tuple(part if isinstance(part, str) else int(operator.index(part)) for part in parts)
    return int.from_bytes(hashlib.sha256(repr(named).encode()).digest()[:8]) >> 1


def generator(*parts: str | int) -> "torch.Generator":
    """A generator of the CPU for the stream of this name; see `derive`."""
    import torch  # not above: commands that import this module must start fast

    return torch.Generator().manual_seed(derive(*parts))
