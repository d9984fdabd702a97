"""Progress of long work with the time left: a bar on a terminal; in a log, now and then a line."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from tqdm import tqdm

_LINE_EVERY_SEC, _BAR_AFTER_SEC = 30.0, 1.0  # what is quicker shows neither


class _Lines:
    """A log: what tqdm would draw over becomes a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, what: str, unit: str, *, initial: int = 0) -> tqdm[NoReturn]:
    """Returns a bar of `total` units, `initial` of which were there before; use it in a `with`.

    Args:
        total: units in all.
        what: is being done, such as "embed gpr1200".
        unit: such as "img".
        initial: units that an earlier run has done.
    """
    how: dict[str, Any] = {"file": sys.stderr, "delay": _BAR_AFTER_SEC}
    if not sys.stderr.isatty():
        how = {"file": _Lines(), "delay": _LINE_EVERY_SEC, "mininterval": _LINE_EVERY_SEC}
        how["maxinterval"] = 2 * _LINE_EVERY_SEC
    return tqdm(total=total, initial=initial, desc=what, unit=unit, **how)
