"""Hashes of texts in columns: what assembly shuffles in place of ids, and sorted files that map them to values.

Everything here works on arrays of whole units or partitions: an object per label would take kilobytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.schema import UserError
from pipeline.storage.beam_files import read_bytes, write_bytes

_DIGEST_BYTES = 16
_UNITS_PER_PARTITION = 64
_PARTITIONS_MAX = 128


def digests(texts: Sequence[str]) -> np.ndarray:
    """Returns 128-bit hashes of `texts`, uint64 `[len(texts), 2]`. Two that are equal are taken for one text."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest() for text in texts)
    return np.frombuffer(joined, "<u8").reshape(len(texts), 2)


def num_partitions(num_units: int) -> int:
    """Returns in how many parts assembly looks at what all units have; no result depends on it."""
    return min(max(num_units // _UNITS_PER_PARTITION, 1), _PARTITIONS_MAX)


def block_type(*fields: tuple[str, str]) -> np.dtype[np.void]:
    """Returns the type of a block's rows: a digest (`high`, `low`), and `fields` as NumPy names them."""
    return np.dtype([("high", "<u8"), ("low", "<u8"), *fields])


def make_block(row_type: np.dtype[np.void], of: np.ndarray, **columns: np.ndarray) -> np.ndarray:
    """Returns a block whose rows have the digests `of`, uint64 `[n, 2]`, and `columns`."""
    block = np.empty(len(of), row_type)
    block["high"], block["low"] = of[:, 0], of[:, 1]
    for name, values in columns.items():
        block[name] = values
    return block


def split_block(block: np.ndarray, num_parts: int) -> Iterator[tuple[int, bytes]]:
    """Yields (partition, rows) of the partitions that `block` has rows of; equal digests are in one partition."""
    part_of_row = block["high"] % np.uint64(num_parts)
    order = np.argsort(part_of_row, stable=True)
    parts, starts = np.unique(part_of_row[order], return_index=True)
    rows_of_parts = np.split(order, starts[1:])  # one piece also where there are no parts
    for part, rows in zip(parts.tolist(), rows_of_parts, strict=False):  # pragma: no mutate: None is False too
        yield part, block[rows].tobytes()


def join_blocks(blocks: Iterable[bytes], row_type: np.dtype[np.void]) -> np.ndarray:
    """Returns the rows of `blocks` in one block."""
    return np.frombuffer(b"".join(blocks), row_type)


def group_starts(block: np.ndarray) -> np.ndarray:
    """Returns bool `[n]`: whether each row of a sorted block has another digest than the row before it."""
    starts = np.ones(len(block), bool)
    starts[1:] = (block["high"][1:] != block["high"][:-1]) | (block["low"][1:] != block["low"][:-1])
    return starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigestMap:
    """A file that maps digests to values. Only this record goes through the engine; workers read the file."""

    path: str
    sha256: str

    def lookup(self, wanted: np.ndarray, *, default: float) -> np.ndarray:
        """Returns the values of the digests `wanted`, uint64 `[n, 2]`; `default` for those that the file lacks.

        Raises:
            UserError: the file is not the one that this run wrote.
        """
        rows = _read_map(self.path, self.sha256)
        values = np.full(len(wanted), default, rows["value"].dtype)
        places = np.searchsorted(rows["high"], wanted[:, 0])
        pending = np.nonzero(places < len(rows))[0]
        while len(pending):  # more than once only if two digests have equal halves
            at = places[pending]
            pending, at = (one[rows["high"][at] == wanted[pending, 0]] for one in (pending, at))
            is_found = rows["low"][at] == wanted[pending, 1]
            values[pending[is_found]] = rows["value"][at[is_found]]
            pending = pending[~is_found]
            places[pending] += 1
            pending = pending[places[pending] < len(rows)]
        return values


def write_digest_map(path: str, of: np.ndarray, values: np.ndarray) -> DigestMap:
    """Writes the file that maps the digests `of`, uint64 `[n, 2]`, to `values`, int32 or float64 `[n]`."""
    rows = make_block(_map_type(values.dtype), of, value=values)
    rows = rows[np.lexsort((rows["low"], rows["high"]))]
    content = values.dtype.str.encode() + b"\n" + rows.tobytes()
    write_bytes(path, content)
    return DigestMap(path=path, sha256=hashlib.sha256(content).hexdigest())


# A job has two: of class ids (20 bytes an entity, 40 MB at two million) and of cutoffs (24 bytes). Every unit needs
# both, so a limit in bytes could only read them again for each.
@functools.lru_cache(maxsize=2)
def _read_map(path: str, sha256: str) -> np.ndarray:
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} was changed while it was in use; run again, and only one run at a time")
    name, _, rows = content.partition(b"\n")  # the first: later ones are bytes of rows
    return np.frombuffer(rows, _map_type(np.dtype(name.decode())))


def _map_type(value_type: np.dtype[np.generic]) -> np.dtype[np.void]:
    return block_type(("value", value_type.str))
