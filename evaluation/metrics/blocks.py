"""Rows of a large array, a block at a time, read ahead; what lies on disk takes memory for two blocks only."""

from __future__ import annotations

import abc
import dataclasses
import io
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from pipeline.schema import UserError

_CONVERTED_BYTES = 1 << 18
_NORMALISED_AT_ONCE = 256  # rows, so that they stay in the core's cache
_CHECKED_AT_ONCE = 1024  # rows
_LENGTH_TOLERANCE = 1e-3  # twice the rounding of float16
IN_MEMORY_VALUES = 1 << 25  # 128 MB as float32: a smaller file is read whole


class Rows(Protocol):
    """Rows to be read by slices: a numpy array, a `numpy.memmap`, or `MadeRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(rows, dim)`."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Returns floats `[rows, dim]`."""
        ...


class MadeRows(abc.ABC):
    """Rows that are put together whenever they are read."""

    shape: tuple[int, int]

    @abc.abstractmethod
    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills `out`, float32 `[n, dim]`, with the rows from `start` on."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 `[rows, dim]`."""
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        self.read_into(out, start)
        return out


class Stacked(MadeRows):
    """Several arrays as one, row upon row.

    Args:
        parts: `[n_i, dim]` each.

    Raises:
        ValueError: they differ in dim.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        if len({part.shape[1] for part in parts}) != 1:
            raise ValueError(f"parts have {[part.shape[1] for part in parts]} columns; they must have the same number")
        self._parts = parts
        self._starts = [sum(part.shape[0] for part in parts[:number]) for number in range(len(parts))]
        self.shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills `out`, float32 `[n, dim]`, with the rows from `start` on."""
        for number, part in enumerate(self._parts):
            offset = self._starts[number]
            first, last = max(start, offset), min(start + len(out), offset + part.shape[0])
            if first < last:  # pragma: no mutate: of no rows, none are read
                here = out[first - start : last - start]
                low, high = first - offset, last - offset
                found = read_rows(part, low, high, here)  # pragma: no mutate: `here` only saves a copy
                if found is not here:
                    here[:] = found


def read_rows(rows: Rows, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Returns rows `start` to `stop`, float32 `[stop - start, dim]`: `out`, or the array's own where it is in memory.

    A memory map is read as a file, since pages of the map that were touched count as this process's memory.

    Args:
        rows: `[n, dim]`.
        start: the first row.
        stop: one past the last.
        out: float32, of that shape: where to put what must be read or converted.

    Raises:
        OSError: the file is shorter than the map.
    """
    mapped = _file_of(rows)
    if mapped is None and not isinstance(rows, MadeRows):
        found = np.asarray(rows[start:stop])
        if found.dtype == np.float32 and found.flags.c_contiguous:
            return found
    if out is None:
        out = np.empty((stop - start, rows.shape[1]), np.float32)
    if mapped is not None:
        _read_file(mapped, start, out)
    elif isinstance(rows, MadeRows):
        rows.read_into(out, start)
    else:
        np.copyto(out, found)
    return out


def take_rows(rows: Rows, positions: np.ndarray) -> np.ndarray:
    """Returns the rows at `positions`, float32 `[positions, dim]`."""
    if isinstance(rows, np.ndarray) and _file_of(rows) is None:  # pragma: no mutate: one by one, they are the same
        return np.asarray(rows.take(positions, axis=0), np.float32)
    found = np.empty((len(positions), rows.shape[1]), np.float32)
    for number, position in enumerate(positions.tolist()):
        found[number] = read_rows(rows, position, position + 1)[0]
    return found


def in_memory(rows: Rows) -> Rows:
    """Returns `rows` as float32 in memory where they are few; larger ones as they are."""
    if rows.shape[0] * rows.shape[1] > IN_MEMORY_VALUES:
        return rows
    return read_rows(rows, 0, rows.shape[0])


def blocks(rows: Rows, block_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Returns the position of each block's first row and the block, float32 `[<= block_rows, dim]`, in order.

    A thread reads the next block meanwhile. A block is valid until the next one is asked for.

    Raises:
        ValueError: a value is not finite.
        OSError: a file is shorter than its map.
    """
    num_rows, dim = rows.shape
    starts = range(0, num_rows, block_rows)
    shape = 2, min(block_rows, num_rows), dim  # pragma: no mutate: more only takes memory
    buffers = np.empty(shape, np.float32)

    def read(start: int, buffer: np.ndarray) -> np.ndarray:
        stop = min(start + block_rows, num_rows)
        out = buffer[: stop - start]  # pragma: no mutate: it only saves memory
        block = read_rows(rows, start, stop, out)  # pragma: no mutate: likewise
        # One sum shows any NaN or infinity, without an array of answers.
        if not np.isfinite(block.sum()):
            raise ValueError("an embedding is not finite; embed again")
        return block

    with ThreadPoolExecutor(1) as reader:  # pragma: no mutate: one block is read at a time
        coming = reader.submit(read, 0, buffers[0])
        for following, start in enumerate(starts, 1):
            block = coming.result()
            if following < len(starts):
                coming = reader.submit(read, starts[following], buffers[following % 2])
            yield start, block


def check_unit_length(rows: Rows, name: str) -> None:
    """Checks that rows have length 1, to within 0.001.

    Of rows that are not in memory only the first and last few are read. Rows that are not finite pass: whoever
    multiplies them refuses them.

    Args:
        rows: floats `[n, dim]`; other shapes pass too.
        name: of the argument, for the message.

    Raises:
        ValueError: a row is longer or shorter.
    """
    if len(rows.shape) != 2:
        return
    num_rows = rows.shape[0]
    in_array = isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap)
    for start in range(0, num_rows, _CHECKED_AT_ONCE):
        stop = min(start + _CHECKED_AT_ONCE, num_rows)
        if not in_array and start and stop < num_rows:
            continue
        # Squares of float32 may overflow in float32.
        block = read_rows(rows, start, stop).astype(np.float64)  # pragma: no mutate: None is float64 too
        lengths = np.linalg.norm(block, axis=1)
        is_off = (lengths < 1 - _LENGTH_TOLERANCE) | (lengths > 1 + _LENGTH_TOLERANCE)
        wrong = np.flatnonzero(np.isfinite(lengths) & is_off)
        if len(wrong):
            raise ValueError(
                f"row {start + wrong[0]} of `{name}` has length {lengths[wrong[0]]:.4g}; divide each row by its norm"
            )


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    start: int  # bytes before the first row
    dtype: np.dtype


def _file_of(rows: Rows) -> _File | None:
    """Returns where the rows of a memory map lie; None for what is not a map of consecutive rows."""
    if not isinstance(rows, np.memmap) or rows.filename is None or not rows.flags.c_contiguous:
        return None
    # A copy-on-write map may differ from its file.
    if rows.mode == "c" or rows.size == 0:
        return None
    # A slice keeps its parent's `offset`, so the start is computed from the addresses.
    whole = np.frombuffer(vars(rows)["_mmap"], np.uint8)
    into_map = rows.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    start = rows.offset - rows.offset % mmap.ALLOCATIONGRANULARITY + into_map
    return _File(os.fspath(rows.filename), start, rows.dtype)


def _read_file(file: _File, start: int, out: np.ndarray) -> None:
    """Fills `out` with the rows from `start` on."""
    row_bytes = out.shape[1] * file.dtype.itemsize
    with open(file.path, "rb", buffering=0) as opened:  # pragma: no mutate: a buffer only takes longer
        opened.seek(file.start + start * row_bytes)
        if file.dtype == out.dtype and out.flags.c_contiguous:
            _fill(opened, out.ravel().view(np.uint8).data)
            return
        # A little at a time, so that it is converted while the core's cache still has it.
        at_once = _CONVERTED_BYTES // row_bytes + 1  # pragma: no mutate: any number of rows gives the same
        few = np.empty((min(len(out), at_once), out.shape[1]), file.dtype)
        for first in range(0, len(out), len(few)):
            part = few[: len(out) - first]
            _fill(opened, part.ravel().view(np.uint8).data)
            np.copyto(out[first : first + len(part)], part)


def _fill(file: io.FileIO, left: memoryview) -> None:
    while len(left):
        num_read = file.readinto(left)
        if not num_read:
            raise OSError(f"{file.name} ends {len(left)} bytes too early; write it again")
        left = left[num_read:]


class NormalisedRows(MadeRows):
    """Rows of an array at length 1, divided by their norms whenever they are read.

    Args:
        rows: floats `[n, dim]`, perhaps memory-mapped.
        name: of what they are, for messages.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self._rows = rows
        self._name = name
        self.shape = (rows.shape[0], rows.shape[1])

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills `out`, float32 `[n, dim]`, with the rows from `start` on.

        Raises:
            UserError: a row is not finite or a zero vector.
        """
        starts = range(0, len(out), _NORMALISED_AT_ONCE)  # pragma: no mutate: rows that are read twice are the same
        for first in starts:
            part = out[first : first + _NORMALISED_AT_ONCE]
            low, high = start + first, start + first + len(part)
            read = read_rows(self._rows, low, high, part)  # pragma: no mutate: `part` only saves memory
            norms = np.sqrt(np.square(read).sum(axis=1))
            # Not `norms < 1e-6`: NaN must not pass.
            wrong = np.flatnonzero(~((norms >= 1e-6) & (norms < np.inf)))
            if len(wrong):
                raise UserError(
                    f"row {start + first + int(wrong[0])} of {self._name} has norm {norms[wrong[0]]}, it must be "
                    "finite and above 0; embed again"
                )
            np.divide(read, norms[:, None], out=part)
