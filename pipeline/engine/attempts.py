"""Notes beside the output of a unit, by which a row that kills its worker, or hangs, is found and given up.

Before a batch is read, its rows are noted. A worker that dies leaves the note. The next attempt runs the rows of that
batch one at a time, each with a note, and if the worker dies again it is known at which row: the third attempt gives
that row up as failed, and the unit is finished without it. So a row costs two workers and is never run a third time.
A row at which the worker dies before it is read is not looked into; if the worker dies there all the same, the file
cannot be read on, and one failed row stands for the rest of it.

A kill of the whole run (by a person, or a machine that stops) leaves notes as well, and says nothing about the row
that happened to be in work. Only a death under the same run is certain to be a worker's own; of others three at one
row, tried alone, are needed.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import sys
import threading
from collections.abc import Iterator
from typing import Any

from apache_beam.io.filesystem import BeamIOError

from pipeline.storage.beam_files import delete_files, read_json, write_json
from pipeline.units import GivenUp

NOTES_FOLDER = "units/notes"
KILLED = "killed_worker"
TIMED_OUT = "timeout"
EXIT_CODE = 75  # of a process that ends because a row hangs; "try again", as sendmail numbers it
_CERTAIN = 3  # what a death of a worker under the same run counts, alone at a row; any other death counts 1


class Attempt:
    """One attempt at a unit, which knows what became of those before it.

    Args:
        path: of the note.
        run_id: of the run of the command; engines try again under the same one.
        timeout_sec: what a batch, or a row that is tried alone, may take.
        name: of the unit, for the message.
    """

    def __init__(self, path: str, *, run_id: str, timeout_sec: float, name: str):
        self._path = path
        self._run_id = run_id
        self._timeout_sec = timeout_sec
        self._name = name
        self._suspects: set[int] = set()
        self._deaths: dict[int, int] = {}
        self._failed: dict[int, str] = {}
        self._unread: dict[int, str] = {}
        self._rests: dict[int, str] = {}
        self._is_read = False
        self._is_noted = False
        self._writing = threading.RLock()  # the watchdog writes too, and what it writes is the last
        note = read_json(path)
        if note is not None:
            self._learn(note)

    def _learn(self, note: dict[str, Any]) -> None:
        self._is_noted = True
        self._suspects = set(note["suspects"])
        self._deaths = {int(row): number for row, number in note["deaths"].items()}
        self._failed, self._unread, self._rests = (
            {int(row): reason for row, reason in note[name].items()} for name in ("failed", "unread", "rests")
        )
        if note["working"] is None:
            return
        first, end = note["working"]
        if end - first > 1 or first not in self._suspects:
            self._suspects.update(range(first, end))
            return
        is_certain = note["reason"] == TIMED_OUT or note["run"] == self._run_id
        self._deaths[first] = self._deaths.get(first, 0) + (_CERTAIN if is_certain else 1)
        if self._deaths[first] < _CERTAIN:
            return
        self._deaths[first] = 0
        if note["is_read"]:
            self._failed[first] = note["reason"]
        elif first not in self._unread:
            self._unread[first] = note["reason"]
        else:
            self._rests[first] = note["reason"]
            # What is known of rows behind it was of rows that have other positions now.
            for rows in (self._failed, self._unread):
                for row in [row for row in rows if row >= first]:
                    del rows[row]

    @property
    def given_up(self) -> GivenUp:
        """What of the unit is not read any more."""
        return GivenUp(rows=self._unread, rests=self._rests)

    def reason_of(self, row: int) -> str | None:
        """Returns why the row, by its position in the unit, is read and then given up; None: it is to be run."""
        return self._failed.get(row)

    def end_of_batch(self, first: int, num_rows: int) -> int:
        """Returns where the batch that starts at row `first` ends: after `num_rows` rows, or before a suspect."""
        if first in self._suspects:
            return first + 1
        return next((row for row in range(first, first + num_rows) if row in self._suspects), first + num_rows)

    @contextlib.contextmanager
    def working_on(self, first: int, end: int) -> Iterator[None]:
        """Notes that the rows `[first, end)` are being worked on; ends the process if that takes too long."""
        self._is_read = False
        self._write((first, end))
        watchdog = threading.Timer(self._timeout_sec, self._give_up, (first, end))
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, BeamIOError):  # the error that is on its way says more
                self._write(None)  # an exception kills no worker
            raise
        finally:
            watchdog.cancel()

    def has_read(self, first: int, end: int) -> None:
        """Notes that the rows `[first, end)`, which are being worked on, are read."""
        self._is_read = True
        if end - first == 1 and first in self._suspects:  # of others it is not asked
            self._write((first, end))

    def end(self) -> None:
        """Deletes the note: the unit is finished."""
        if self._is_noted:
            delete_files([self._path])

    def _write(self, working: tuple[int, int] | None, reason: str = KILLED) -> None:
        self._is_noted = True
        note = {
            "run": self._run_id,
            "working": working,
            "reason": reason,
            "is_read": self._is_read,
            "suspects": sorted(self._suspects),
            "deaths": self._deaths,
            "failed": self._failed,
            "unread": self._unread,
            "rests": self._rests,
        }
        with self._writing:
            write_json(self._path, note)

    def _give_up(self, first: int, end: int) -> None:
        """Ends the process: a thread that hangs in a library cannot be stopped in any other way."""
        self._writing.acquire()
        self._write((first, end), TIMED_OUT)
        print(
            f"error: unit {self._name}: rows {first} to {end - 1} took longer than {self._timeout_sec:g} s "
            "(--stall-timeout-sec); the worker ends. The next attempt runs these rows one at a time, and gives up one "
            "that hangs again as failed; run again if this ends the run",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)


def note_path(output: str, unit: str, key: str) -> str:
    """Returns where the note of the attempts at a unit lies; `key` stands for all that its annotations depend on."""
    return posixpath.join(output, NOTES_FOLDER, f"{unit}.{key}.json")
