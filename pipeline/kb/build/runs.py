"""An external sort: tuples go to sorted files, which are merged; memory does not grow with their number."""

from __future__ import annotations

import heapq
import itertools
import marshal
import os
from collections.abc import Iterable, Iterator
from typing import Any

_FAN_IN = 64  # runs that are merged at once
_CHUNK = 100  # tuples that are read and written at once


class Runs:
    """Tuples of numbers, texts, bytes and tuples, to be read in their order.

    Args:
        folder: where the files are written; they are removed as they are read.
        name: of the files.
        num_items: tuples in memory; more are sorted and written.
    """

    def __init__(self, folder: str, name: str, *, num_items: int) -> None:
        self._folder, self._name, self._num_items = folder, name, num_items
        self._items: list[Any] = []
        self._paths: list[str] = []
        self._numbers = itertools.count()
        self.num_added = 0

    def extend(self, items: Iterable[Any]) -> None:
        """Adds `items`."""
        before = len(self._items)
        self._items.extend(items)
        self.num_added += len(self._items) - before
        if len(self._items) >= self._num_items:
            self._items.sort()
            self._paths.append(self._write(self._items))
            self._items = []

    def merged(self) -> Iterator[Any]:
        """Returns all items in order, once."""
        self._items.sort()
        while len(self._paths) > _FAN_IN:
            first, self._paths = self._paths[:_FAN_IN], self._paths[_FAN_IN:]
            self._paths.append(self._write(heapq.merge(*map(_read, first))))
        if not self._paths:
            yield from self._items
        else:
            yield from heapq.merge(*map(_read, self._paths), self._items)
        self._items, self._paths = [], []

    def _write(self, items: Iterable[Any]) -> str:
        path = os.path.join(self._folder, f"{self._name}.{next(self._numbers)}")
        rest = iter(items)
        with open(path, "wb") as file:
            while chunk := list(itertools.islice(rest, _CHUNK)):
                marshal.dump(chunk, file)
        return path


def _read(path: str) -> Iterator[Any]:
    """Returns the items of a run, and removes its file after the last."""
    size_bytes = os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size_bytes:
            yield from marshal.load(file)
    os.remove(path)
