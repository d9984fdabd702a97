"""A stage that kills its process; a module of its own, so that worker processes can import it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from pipeline.row_stage import RowStage
from pipeline.schema import Rejection, Row, UserError


class DeadlyStage(RowStage):
    """Kills its process at the text "KILL", and at each batch if it is told to; "WRONG" is an error."""

    name = "deadly"

    def __init__(self, *, always: bool = False):
        super().__init__()
        self.always = always

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        if self.always or any(row.pair.text == "KILL" for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(row.pair.text == "WRONG" for row in rows):
            raise UserError("the model is missing; train it")
        return [
            row.rejected(stage=self.name, reason="no_mention") if row.pair.text == "nothing" else row for row in rows
        ]
