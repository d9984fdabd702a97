"""How a command of the project ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from pipeline.schema import UserError


@contextlib.contextmanager
def ending_on_user_errors() -> Iterator[None]:
    """Around what a command does: prints an error that the user can fix on one line, and ends with exit status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
