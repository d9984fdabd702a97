"""Functions that are called in other processes."""

from __future__ import annotations

import collections
import concurrent.futures
import gc
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipeline.schema import UserError

_Result = TypeVar("_Result")


class Processes:
    """A context manager that calls functions of a module in `num` processes; with 1, in this one.

    Args:
        num: of processes, at least 1. They start with the first call.
    """

    def __init__(self, num: int = 1) -> None:
        self.num = num
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        if self.num > 1:
            # Not forked: threads of this process may hold locks.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.num,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=gc.disable,  # looking for cycles takes time, and what these functions make has none
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> Callable[[], _Result]:
        """Calls `function`, perhaps later, and returns what waits for its result.

        Raises:
            UserError: a process was ended; here, or where the result is asked for.
        """
        if self._pool is None:
            result = function(*arguments)
            return lambda: result
        try:
            future = self._pool.submit(function, *arguments)
        except concurrent.futures.BrokenExecutor:
            raise _ended() from None
        return lambda: _result(future)

    def map(self, function: Callable[..., _Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[_Result]:
        """Returns the results of `function` for the arguments in `calls`, in order; few are called ahead.

        Raises:
            UserError: a process was ended.
        """
        waiting: collections.deque[Callable[[], _Result]] = collections.deque()
        for arguments in calls:
            waiting.append(self.submit(function, *arguments))
            if len(waiting) > (2 * self.num if self.num > 1 else 0):  # so that memory holds few
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def _result(future: concurrent.futures.Future[_Result]) -> _Result:
    try:
        return future.result()
    except concurrent.futures.BrokenExecutor:
        raise _ended() from None


def _ended() -> UserError:
    return UserError("a process of the build ended by itself; memory may be short; build again with fewer --processes")
