"""Writes the flat files of a base, row by row, and reads them as arrays while it is built."""

from __future__ import annotations

import array
import os
from typing import BinaryIO

import numpy as np

from pipeline.kb.flat_files import FLAT_FILES

_DTYPES = {"B": np.uint8, "I": np.uint32, "Q": np.uint64, "f": np.float32}
_OFFSETS_HELD = 10_000


class FlatWriter:
    """Appends rows to a file `name` and, where it has one, to its `name.offsets`; a context manager."""

    def __init__(self, folder: str, name: str, *, has_offsets: bool = True) -> None:
        self._file: BinaryIO = open(os.path.join(folder, name), "wb", buffering=1 << 18)
        self._item_bytes = np.dtype(_DTYPES[FLAT_FILES.get(name, "I")]).itemsize
        self._offsets_file: BinaryIO | None = None
        self._offsets = array.array("Q")
        self._end = 0
        if has_offsets:
            self._offsets_file = open(os.path.join(folder, f"{name}.offsets"), "wb")
            self._offsets.append(0)

    def __enter__(self) -> FlatWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        if self._offsets_file is not None:
            self._offsets.tofile(self._offsets_file)
            self._offsets_file.close()

    def append(self, row: bytes) -> None:
        """Appends one row."""
        self._file.write(row)
        if self._offsets_file is not None:
            self._end += len(row) // self._item_bytes
            self._offsets.append(self._end)
            if len(self._offsets) >= _OFFSETS_HELD:
                self._offsets.tofile(self._offsets_file)
                self._offsets = array.array("Q")


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
