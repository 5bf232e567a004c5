"""A table on disk that several processes fill row by row, and that stays valid if they are killed at any point."""

import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHECKSUM = 4  # bytes after each row

Positions = NDArray[np.int64]
RowBytes = NDArray[np.uint8]


class RowFile:
    """`rows` rows of `width` bytes in a sparse file; a row that was never or only partly written counts as missing.

    Each row is followed by its checksum, so rows are independent: no lock is needed, and two processes may write the
    same row at the same time if they write the same content. Rows are read through a memory map, but not written
    through one: on a full disk, writing to a map kills the process, whereas `pwrite` raises OSError.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self._stride = width + CHECKSUM
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        size = rows * self._stride
        if os.fstat(self._file.fileno()).st_size < size:
            self._file.truncate(size)
        self._map = np.memmap(path, np.uint8, "r", shape=(rows, self._stride))

    def read(self, rows: Positions) -> tuple[NDArray[np.bool_], RowBytes]:
        """Return which of n rows are present, bool (n,), and their content, uint8 (n, width).

        The content of missing rows is arbitrary.
        """
        content = self._map[rows]
        payload = np.ascontiguousarray(content[:, :-CHECKSUM])
        stored = np.ascontiguousarray(content[:, -CHECKSUM:]).view(np.uint32)[:, 0]
        found = stored != 0
        for i in np.flatnonzero(found):
            found[i] = stored[i] == _checksum(int(rows[i]), payload[i])
        return found, payload

    def write(self, rows: Positions, payload: RowBytes) -> None:
        """Write `payload`, uint8 (n, width), to these rows. Raises OSError if the disk is full."""
        for row, content in zip(rows.tolist(), payload, strict=True):
            checksum = _checksum(row, content).to_bytes(CHECKSUM, "little")
            os.pwrite(self._file.fileno(), content.tobytes() + checksum, row * self._stride)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        del self._map


def _checksum(row: int, content: RowBytes) -> int:
    """Return the CRC-32 of a row's content and number; never 0, the value of rows that were never written."""
    return zlib.crc32(content.data, row & 0xFFFFFFFF) or 1
