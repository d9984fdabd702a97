"""How far a run is, from the commit records that appear: lines while it runs, and a summary at its end."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from apache_beam.io.filesystem import BeamIOError

from pipeline.storage.unit_commits import commits_beside, read_commits, read_outcomes

_POLL_SEC = 5.0
_REASONS_SHOWN = 4


class Progress:
    """Prints how many units are done, rows a second, why rows were dropped and the time left, on any engine.

    Args:
        output: where the commit records appear.
        pending: the key of each unit that is to be annotated.
        num_before: units that were finished before.
    """

    def __init__(self, output: str, pending: Mapping[str, str], *, num_before: int):
        self._output = output
        self._pending = pending
        self._num_before = num_before
        self._known = {
            commit.file
            for commits in read_commits(output).values()
            for commit in commits
            if pending.get(commit.unit) != commit.key  # of a unit that is retried the record may be the same again
        }
        self._num_done = 0
        self._num_rows = 0
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._start_sec = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        with contextlib.suppress(OSError, BeamIOError):  # an output that cannot be read was reported
            self._look()
        num_units = self._num_before + len(self._pending)
        took_sec = time.monotonic() - self._start_sec
        print(
            f"annotate: {self._num_before + self._num_done}/{num_units} units, {self._num_rows} rows in "
            f"{took_sec:.0f} s, {self._num_rows / max(took_sec, 1e-9):.0f} rows/s{self._ends()}",
            flush=True,
        )

    def _watch(self) -> None:
        interval_sec = _POLL_SEC
        while not self._is_over.wait(interval_sec):
            before, start_sec = self._num_done, time.monotonic()
            with contextlib.suppress(OSError, BeamIOError):
                self._look()
            # A listing of very many units, or of a slow store, must not become a load of its own.
            interval_sec = max(_POLL_SEC, 20 * (time.monotonic() - start_sec))
            if self._num_done > before:
                self._print_line()

    def _look(self) -> None:
        for file, commit in commits_beside(self._output, self._known).items():
            if self._pending.get(commit.unit) != commit.key:
                self._known.add(file)
                continue
            outcomes = read_outcomes(self._output, commit)
            if sum(outcomes.values()) != commit.num_rows:
                continue  # still being written
            self._known.add(file)
            self._num_done += 1
            self._num_rows += commit.num_rows
            self._outcomes.update(outcomes)

    def _print_line(self) -> None:
        took_sec = time.monotonic() - self._start_sec
        left_sec = took_sec / self._num_done * (len(self._pending) - self._num_done)
        print(
            f"annotate: {self._num_before + self._num_done}/{self._num_before + len(self._pending)} units, "
            f"{self._num_rows / took_sec:.0f} rows/s, about {left_sec:.0f} s left{self._ends()}",
            flush=True,
        )

    def _ends(self) -> str:
        """Returns the most frequent ends of rows, such as ": 10 annotated, 3 no_mention"."""
        ends = collections.Counter[str]()
        for end, number in self._outcomes.items():
            ends[end.rsplit("/", 1)[-1]] += number
        shown = ends.most_common(_REASONS_SHOWN)
        return "".join((": " if place == 0 else ", ") + f"{number} {end}" for place, (end, number) in enumerate(shown))
