"""Stages that kill their process; a module of its own, so that worker processes can import it."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Sequence

from pipeline.engine.devices import this_worker
from pipeline.row_stage import RowStage
from pipeline.schema import Rejection, Row, UserError
from pipeline.sources import member_rules
from pipeline.sources.tar_members import Tar


class DeadlyStage(RowStage):
    """Kills its process at the text "KILL", and at each batch if it is told to; "WRONG" is an error,
    and "WORKER" one that says which of the worker processes this is."""

    name = "deadly"

    def __init__(self, *, always: bool = False):
        super().__init__()
        self.always = always

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        if self.always or any(row.pair.text == "KILL" for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(row.pair.text == "WORKER" for row in rows):
            raise UserError(f"this is worker {this_worker()}")
        if any(row.pair.text == "WRONG" for row in rows):
            raise UserError("the model is missing; train it")
        return [
            row.rejected(stage=self.name, reason="no_mention") if row.pair.text == "nothing" else row for row in rows
        ]


class DeadlyReader(RowStage):
    """Makes reading kill its process: at the text "KILL" when it is cleaned, or when its bytes are taken from the tar.

    Args:
        at: "text" or "bytes".
    """

    name = "deadly"

    def __init__(self, *, at: str):
        super().__init__()
        self.at = at

    def setup(self) -> None:
        clean, content = member_rules.clean_text, Tar.content

        def dying_clean(text: str) -> str:
            _die_at(text)
            return clean(text)

        def dying_content(tar: Tar, member: tarfile.TarInfo) -> bytes:
            found = content(tar, member)
            _die_at(found.decode("latin-1"))
            return found

        if self.at == "text":
            member_rules.clean_text = dying_clean
        else:
            Tar.content = dying_content  # type: ignore[method-assign]

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return list(rows)


def _die_at(text: str) -> None:
    if text == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
