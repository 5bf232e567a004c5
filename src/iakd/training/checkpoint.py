"""The checkpoint of a running training: one file, written atomically, that starts with a hash of its content."""

import io
from pathlib import Path
from typing import Any

import torch

from iakd import files
from iakd.errors import UserError

NAME = "checkpoint.pt"
HASH_BYTES = 64  # hexadecimal SHA-256


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of them)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    files.write_bytes(folder / NAME, files.sha256_bytes(content).encode() + content)


def load(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the state of the run `key`; None without one, or with one of other settings or sources.

    Raises UserError for a damaged file.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = path.read_bytes()
    if files.sha256_bytes(content[HASH_BYTES:]).encode() != content[:HASH_BYTES]:
        raise UserError(f"{path} is damaged; delete it to train this run from its start")
    state = torch.load(io.BytesIO(content[HASH_BYTES:]), map_location="cpu", weights_only=True)
    return state if state["key"] == key else None
