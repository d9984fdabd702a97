"""Tables and counts of texts on disk, for more of them than memory holds."""

from __future__ import annotations

import itertools
import operator
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import lmdb

from pipeline.kb.build.processes import Processes
from pipeline.kb.build.runs import Run, Runs, merge, reduced, remove, write_run

_MAP_BYTES = 1 << 38  # an upper limit of address space, not of disk
_KEY_BYTES_MAX = 511  # LMDB's
_PAIRS_HELD = 200_000
_COUNTS_HELD = 300_000  # some 80 MB
_ROWS_AT_ONCE = 10_000
_NUM_BITS = 1 << 27  # of the filter: 16 MB, with which one in ten unknown keys is looked up among ten million


class Table:
    """The values of each key, in the order in which they are added; a context manager.

    Keys that are too long for LMDB are left out. Nothing can be added once a key was asked for.

    Args:
        folder: for the files, where `name` is not used yet.
        name: of the table.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._path = os.path.join(folder, name)
        self._pairs = Runs(folder, f"{name}-pairs", num_items=_PAIRS_HELD)
        self._numbers = itertools.count()
        self._filter = bytearray(_NUM_BITS // 8)  # most keys that are asked for are unknown
        self._env: lmdb.Environment | None = None

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._env is not None:
            self._env.close()

    def add(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Adds values to keys; no value has a line break."""
        rest = ((key.encode(), next(self._numbers), value.encode()) for key, value in pairs)
        while some := list(itertools.islice(rest, _ROWS_AT_ONCE)):
            self._pairs.extend(some)

    def get(self, key: str) -> tuple[str, ...]:
        """Returns the values of `key`; () of an unknown one."""
        if self._env is None:
            self._write()
        encoded = key.encode()
        bit = _bit(encoded)
        if not self._filter[bit >> 3] >> (bit & 7) & 1 or len(encoded) > _KEY_BYTES_MAX:
            return ()
        value = self._get(encoded)
        return () if value is None else tuple(value.decode().split("\n"))

    def last(self, key: str) -> str | None:
        """Returns the value of `key` that was added last; None of an unknown one."""
        values = self.get(key)
        return values[-1] if values else None

    def _write(self) -> None:
        self._env = lmdb.open(self._path, map_size=_MAP_BYTES, subdir=False, lock=False, sync=False)
        rows = self._rows()
        while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            with self._env.begin(write=True) as transaction:
                transaction.cursor().putmulti(batch, append=True)
        self._get = self._env.begin().get

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        for key, group in itertools.groupby(self._pairs.merged(), key=operator.itemgetter(0)):
            if 0 < len(key) <= _KEY_BYTES_MAX:
                bit = _bit(key)
                self._filter[bit >> 3] |= 1 << (bit & 7)
                yield key, b"\n".join(value for _, _, value in group)


class Counts:
    """How often each tuple of texts was added.

    Args:
        folder: for the files.
        name: of the files.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._held: Counter[tuple[str, ...]] = Counter()
        self._runs: list[Run] = []

    def add(self, items: Iterable[tuple[str, ...]]) -> None:
        """Counts `items`."""
        self._held.update(items)
        if len(self._held) >= _COUNTS_HELD:
            self._write()

    def counted(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Returns each tuple in order, with its count, once."""
        if self._held:
            self._write()
        runs = reduced(self._runs, self._folder, f"{self._name}-merged", Processes())
        for item, group in itertools.groupby(merge(runs), key=operator.itemgetter(0)):
            yield item, sum(count for _, count in group)
        remove(runs)

    def _write(self) -> None:
        path = os.path.join(self._folder, f"{self._name}.{len(self._runs)}")
        self._runs.append(write_run(path, sorted(self._held.items())))
        self._held.clear()


def _bit(key: bytes) -> int:
    return zlib.crc32(key) % _NUM_BITS
