"""The damaged records that a run skips, and how many they may be."""

from __future__ import annotations

import json
import os
import re

import jax
import numpy as np
from etils import epath

from pipeline.schema import UserError
from trainer.data import ReadExample
from trainer.files import append_line, in_store, read_lines

SKIPPED_FILE = "skipped.jsonl"
_OF_ANY_PROCESS = re.compile(rf"(\d+-)?{re.escape(SKIPPED_FILE)}")


class SkippedRecords:
    """The records that were skipped by all processes of a run so far, each counted once.

    Args:
        workdir: the run's folder, where they are listed.
        read: what reads the records of the set.
        num_skippable: how many there may be.
    """

    def __init__(self, workdir: str, read: ReadExample, num_skippable: int):
        # In a store, a process that appends writes the file anew, so each process has a file of its own.
        number = jax.process_index() if in_store(workdir) else 0
        self._folder = epath.Path(workdir)
        self._path = os.path.join(workdir, SKIPPED_FILE if number == 0 else f"{number}-{SKIPPED_FILE}")
        self._read, self._num_skippable = read, num_skippable
        self._known = self._listed()

    def note(self, drawn: np.ndarray, read: np.ndarray) -> None:
        """Notes what this process skipped in a step.

        Args:
            drawn: int64 [rows], the records that were to be read.
            read: int64 [rows], those that were read.

        Raises:
            UserError: more records are damaged than may be skipped.
        """
        for row in np.flatnonzero(drawn != read).tolist():
            first, last = int(drawn[row]), int(read[row])
            total = self._read.num_records
            for position in ((first + offset) % total for offset in range((last - first) % total)):
                if position not in self._known:
                    self._add(position)

    def count(self) -> int:
        """Returns how many records all processes skipped.

        Raises:
            UserError: they are more than may be skipped.
        """
        self._known |= self._listed()
        self._check("")
        return len(self._known)

    def _add(self, position: int) -> None:
        damage = self._read.damage(position)
        self._known.add(position)
        append_line(self._path, json.dumps({"record": position, "damage": damage}, ensure_ascii=False))
        print(f"warning: skipped: {damage}", flush=True)
        self._check(f"; the last is: {damage}")

    def _check(self, last: str) -> None:
        if len(self._known) > self._num_skippable:
            raise UserError(
                f"{len(self._known)} records of the set are damaged, but data.num_skippable is {self._num_skippable}; "
                f"build the set again, or allow more; {self._path} lists them{last}"
            )

    def _listed(self) -> set[int]:
        files = [file for file in self._folder.iterdir() if _OF_ANY_PROCESS.fullmatch(file.name)]
        return {json.loads(line)["record"] for file in files for line in read_lines(os.fspath(file))}
