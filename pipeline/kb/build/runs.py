"""An external sort: tuples go to sorted files, which are merged; memory does not grow with their number.

A part of the keys can be merged by itself, so that several processes merge at once.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.kb.build.marshal_files import read_values, write_value
from pipeline.kb.build.processes import Processes

_FAN_IN = 64  # runs that are merged at once
_CHUNK = 100  # tuples that are read and written at once
_CHUNKS_PER_MARK = 20
_key = operator.itemgetter(0)


class Run(NamedTuple):
    """A file of sorted tuples, whose first field is their key."""

    path: str
    num_items: int
    marks: list[tuple[Any, int]]  # keys of some tuples, rising, with where in the file their chunk begins
    shift: int = 0  # is added to the second field of each tuple


class Keys(NamedTuple):
    """The keys from `low` on and below `high`; without bounds where these are None."""

    low: Any = None
    high: Any = None


_ALL = Keys()


class Runs:
    """Tuples of numbers, texts, bytes and tuples, to be read in their order.

    Args:
        folder: where the files are written.
        name: of the files.
        num_items: tuples in memory; more are sorted and written.
    """

    def __init__(self, folder: str, name: str, *, num_items: int) -> None:
        self._folder, self._name, self._num_items = folder, name, num_items
        self._items: list[Any] = []
        self._runs: list[Run] = []
        self.num_added = 0

    def extend(self, items: Iterable[Any]) -> None:
        """Adds `items`."""
        before = len(self._items)
        self._items.extend(items)
        self.num_added += len(self._items) - before
        if len(self._items) >= self._num_items:
            self._write()

    def finish(self) -> list[Run]:
        """Returns the files of all tuples."""
        if self._items:
            self._write()
        return self._runs

    def merged(self) -> Iterator[Any]:
        """Returns all tuples in order, once; their files are removed after the last."""
        runs = reduced(self.finish(), self._folder, f"{self._name}-merged", Processes())
        yield from merge(runs)
        remove(runs)

    def _write(self) -> None:
        self._items.sort()
        self._runs.append(write_run(os.path.join(self._folder, f"{self._name}.{len(self._runs)}"), self._items))
        self._items = []


def write_run(path: str, items: Iterable[Any]) -> Run:
    """Writes sorted tuples, at least one."""
    marks: list[tuple[Any, int]] = []
    num_items = 0
    rest = iter(items)
    with open(path, "wb") as file:
        for number in itertools.count():
            if not (chunk := list(itertools.islice(rest, _CHUNK))):
                break
            if number % _CHUNKS_PER_MARK == 0:
                marks.append((chunk[0][0], file.tell()))
            write_value(chunk, file)
            num_items += len(chunk)
    return Run(path, num_items, marks)


def merge(runs: Sequence[Run], keys: Keys = _ALL) -> Iterator[Any]:
    """Returns the tuples of `runs` with these keys, in order.

    Chunks are put together and sorted, which is several times as fast as `heapq.merge`: what is left to read of a run
    comes after its last chunk, so all tuples up to the least of these ends are complete.
    """
    held: list[Any] = []
    ends: list[tuple[Any, int, Iterator[list[Any]]]] = []  # a heap of the last tuples of chunks

    def read_on(place: int, chunks: Iterator[list[Any]]) -> None:
        if chunk := next(chunks, None):
            held.extend(chunk)
            heapq.heappush(ends, (chunk[-1], place, chunks))

    for place, run in enumerate(runs):
        read_on(place, _chunks(run, keys))
    while ends:
        num_held = len(held)
        while ends and len(held) <= 2 * num_held:
            read_on(*heapq.heappop(ends)[1:])
        held.sort()
        num_complete = bisect.bisect_right(held, ends[0][0]) if ends else len(held)
        yield from held[:num_complete]
        del held[:num_complete]


def merge_to_run(path: str, runs: Sequence[Run]) -> Run:
    """Writes the tuples of `runs` as one, and removes them."""
    found = write_run(path, merge(runs))
    remove(runs)
    return found


def reduced(runs: Sequence[Run], folder: str, name: str, processes: Processes) -> list[Run]:
    """Returns `runs`, merged with each other until they are few enough to be read at once."""
    numbers = itertools.count()
    found = list(runs)
    while len(found) > _FAN_IN:
        size = max(2, min(_FAN_IN, math.ceil(len(found) / _FAN_IN)))
        groups = [found[start : start + size] for start in range(0, len(found), size)]
        found = list(
            processes.map(merge_to_run, ((os.path.join(folder, f"{name}.{next(numbers)}"), group) for group in groups))
        )
    return found


def split_keys(runs: Sequence[Run], num_parts: int) -> list[Keys]:
    """Returns at most `num_parts` parts of the keys in order, of about as many tuples each."""
    marked = sorted(key for run in runs for key, _ in run.marks)
    places = (len(marked) * part // num_parts for part in range(1, num_parts))
    bounds = [None, *dict.fromkeys(marked[place] for place in places if marked[place] > marked[0]), None]
    return [Keys(low, high) for low, high in itertools.pairwise(bounds)]


def remove(runs: Iterable[Run]) -> None:
    """Removes the files."""
    for run in runs:
        os.remove(run.path)


def _chunks(run: Run, keys: Keys) -> Iterator[list[Any]]:
    """Returns the tuples of a file with these keys, some at a time."""
    low, high = keys
    # Tuples of the key `low` may begin before the first mark that has it.
    first = 0 if low is None else bisect.bisect_left(run.marks, low, key=_key) - 1
    for chunk in read_values(run.path, run.marks[max(first, 0)][1]):
        is_last = high is not None and chunk[-1][0] >= high
        if is_last:
            chunk = chunk[: bisect.bisect_left(chunk, high, key=_key)]
        if low is not None and chunk and chunk[0][0] < low:
            chunk = chunk[bisect.bisect_left(chunk, low, key=_key) :]
        if run.shift:
            chunk = [(key, number + run.shift, *rest) for key, number, *rest in chunk]
        if chunk:
            yield chunk
        if is_last:
            return
