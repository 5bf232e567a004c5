"""A table on disk that several processes fill together, row by row, and that survives being cut off anywhere."""

import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHECK = 4  # bytes behind each row

Positions = NDArray[np.int64]
RowBytes = NDArray[np.uint8]


class RowFile:
    """`rows` rows of `width` bytes in a sparse file; rows that were never written, or not wholly, count as missing.

    Each row is followed by its checksum, so that rows are independent: there is no lock, and two processes may write
    the same row at once, as long as they write the same. Reading is through a memory map; writing is not, because of a
    disk that is full a process learns by an error there, not by its death.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self._stride = width + CHECK
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        size = rows * self._stride
        if os.fstat(self._file.fileno()).st_size < size:
            self._file.truncate(size)
        self._map = np.memmap(path, np.uint8, "r", shape=(rows, self._stride))

    def read(self, rows: Positions) -> tuple[NDArray[np.bool_], RowBytes]:
        """Which of these rows there are, (n,), and all of them, uint8 (n, width); missing ones hold anything."""
        content = self._map[rows]
        payload = np.ascontiguousarray(content[:, :-CHECK])
        stored = np.ascontiguousarray(content[:, -CHECK:]).view(np.uint32)[:, 0]
        found = stored != 0
        for place in np.flatnonzero(found):
            found[place] = stored[place] == _check(int(rows[place]), payload[place])
        return found, payload

    def write(self, rows: Positions, payload: RowBytes) -> None:
        """Put `payload`, uint8 (n, width), into these rows. Raises OSError where the disk is full."""
        for row, content in zip(rows.tolist(), payload, strict=True):
            check = _check(row, content).to_bytes(CHECK, "little")
            os.pwrite(self._file.fileno(), content.tobytes() + check, row * self._stride)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        del self._map


def _check(row: int, content: RowBytes) -> int:
    """CRC-32 of a row and its number; never 0, which stands where nothing was written."""
    return zlib.crc32(content.data, row & 0xFFFFFFFF) or 1
