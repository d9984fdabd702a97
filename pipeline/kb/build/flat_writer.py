"""Writes the flat files of a base, row by row, and reads them as arrays while it is built."""

from __future__ import annotations

import array
import io
import itertools
import os
from typing import BinaryIO

import numpy as np

from pipeline.kb.flat_files import FLAT_FILES

_DTYPES = {"B": np.uint8, "I": np.uint32, "Q": np.uint64, "f": np.float32}
_ROWS_HELD = 2_000


class FlatWriter:
    """Appends rows to a file `name` and, where it has one, to its `name.offsets`; a context manager."""

    def __init__(self, folder: str, name: str, *, has_offsets: bool = True) -> None:
        self._file: io.FileIO = open(os.path.join(folder, name), "wb", buffering=0)
        self._item_bytes = np.dtype(_DTYPES[FLAT_FILES.get(name, "I")]).itemsize
        self._offsets_file: BinaryIO | None = None
        self._rows: list[bytes] = []
        self._end = 0
        if has_offsets:
            self._offsets_file = open(os.path.join(folder, f"{name}.offsets"), "wb")
            array.array("Q", (0,)).tofile(self._offsets_file)

    def __enter__(self) -> FlatWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._flush()
        self._file.close()
        if self._offsets_file is not None:
            self._offsets_file.close()

    def append(self, row: bytes) -> None:
        """Appends one row; rows are written some thousand at a time."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS_HELD:
            self._flush()

    def _flush(self) -> None:
        self._file.write(b"".join(self._rows))
        if self._offsets_file is not None:
            lengths = itertools.chain((self._end,), (len(row) // self._item_bytes for row in self._rows))
            offsets = array.array("Q", itertools.accumulate(lengths))
            self._end = offsets[-1]
            offsets[1:].tofile(self._offsets_file)
        self._rows.clear()


def read_array(folder: str, name: str) -> np.ndarray:
    """Returns the file `name`, memory-mapped; the type is that of `FLAT_FILES`, or uint32."""
    path = os.path.join(folder, name)
    dtype = _DTYPES[FLAT_FILES.get(name, "Q" if name.endswith(".offsets") else "I")]
    return np.memmap(path, dtype, "r") if os.path.getsize(path) else np.empty(0, dtype)


def gather_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the concatenation of `values[start : start + length]` for all rows."""
    ends = np.cumsum(lengths)
    if not len(lengths) or not ends[-1]:
        return values[:0]
    places = np.arange(ends[-1], dtype=np.int64) + np.repeat(starts.astype(np.int64) - (ends - lengths), lengths)
    return np.asarray(values[places])
