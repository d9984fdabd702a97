"""Values that are kept while they are used, up to a number of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class ByteCache(dict[_Key, _Value]):
    """Values by key, up to a number of bytes; those that were not used for long are dropped. Threads may share it.

    It has two generations. New values are young. Once the young ones would have more than half of the bytes they
    become the old ones, and the old ones of before are dropped; an old value that is used is young again. So to find a
    young value takes one look-up in a dict, without a lock, and no order has to be kept.

    Args:
        max_bytes: of all values. A value of more than half of it is not kept.
        size_bytes: key, value -> the bytes that the entry takes.
    """

    def __init__(self, max_bytes: int, size_bytes: Callable[[_Key, _Value], int]) -> None:
        super().__init__()
        self._old: dict[_Key, _Value] = {}
        self._max_young_bytes = max_bytes // 2
        self._young_bytes = 0
        self._size_bytes = size_bytes
        self._lock = threading.Lock()

    def find(self, key: _Key) -> _Value | None:
        """Returns the value of `key`; None if it is not kept."""
        value = self.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def find_all(self, keys: Iterable[_Key]) -> tuple[dict[_Key, _Value], list[_Key]]:
        """Returns the values that are kept of `keys`, and the keys of which none is, in their order."""
        found: dict[_Key, _Value] = {}
        missing: list[_Key] = []
        for key in keys:
            if (value := self.find(key)) is None:
                missing.append(key)
            else:
                found[key] = value
        return found, missing

    def put(self, key: _Key, value: _Value) -> None:
        """Adds a value. A key that is there keeps its value: a key never gets another one."""
        num_bytes = self._size_bytes(key, value)
        with self._lock:
            if key in self or num_bytes > self._max_young_bytes:
                return
            if self._young_bytes + num_bytes > self._max_young_bytes:
                self._old = dict(self)
                self.clear()
                self._young_bytes = 0
            self[key] = value
            self._young_bytes += num_bytes


class Remembered(ByteCache[_Key, _Value]):
    """What a function says of keys: `remembered[key]` calls it where its answer is not kept.

    A young answer costs less than one of `functools.lru_cache`.

    Args:
        function: key -> answer; equal keys have equal answers.
        max_bytes: see `ByteCache`.
        size_bytes: see `ByteCache`.
    """

    def __init__(
        self, function: Callable[[_Key], _Value], max_bytes: int, size_bytes: Callable[[_Key, _Value], int]
    ) -> None:
        super().__init__(max_bytes, size_bytes)
        self._function = function

    def __missing__(self, key: _Key) -> _Value:
        value = self.find(key)
        if value is None:
            value = self._function(key)
            self.put(key, value)
        return value
