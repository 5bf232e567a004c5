"""The checkpoint of a running training: one file, written atomically, that starts with a hash of its content."""

import io
import threading
from pathlib import Path
from typing import Any

import torch

from iakd import files
from iakd.errors import UserError

NAME = "checkpoint.pt"
HASH_BYTES = 64  # hexadecimal SHA-256


class Writer:
    """Writes the checkpoints of a training while it goes on, so that a slow disk or network does not hold it up.

    A checkpoint is the state at the moment of `save`. Until it is written, the file is the one before.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, lists and dicts of them) in the background.

        Waits until the one before is written; raises what that raised.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        content = files.sha256_bytes(content).encode() + content
        self.wait()
        self._thread = threading.Thread(target=self._write, args=[content], name="checkpoint")
        self._thread.start()

    def _write(self, content: bytes) -> None:
        try:
            files.write_bytes(self._path, content)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until all is written; raises what went wrong, such as OSError for a full disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


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
