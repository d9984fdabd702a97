"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the name `path` once it is whole: a kill leaves what stood under that name before."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with open(temporary, "wb") as file:
        yield file
    os.replace(temporary, path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` at `path`, whole or not at all."""
    with new_file(path) as file:
        file.write(content)
