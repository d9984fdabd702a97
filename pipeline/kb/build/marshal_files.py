"""Files of values that `marshal` knows, one after the other."""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

_SIZE = struct.Struct("<I")


def write_value(value: Any, file: BinaryIO) -> None:
    """Appends `value`, of at most 4 GiB."""
    content = marshal.dumps(value)
    file.write(_SIZE.pack(len(content)))
    file.write(content)


def read_values(path: str, start: int = 0) -> Iterator[Any]:
    """Returns the values of the file at `path`, from the one that begins at byte `start`.

    Each is read at once: `marshal.load` reads the file in pieces of some bytes, which takes three times as long.
    """
    with open(path, "rb") as file:
        file.seek(start)
        while head := file.read(_SIZE.size):
            yield marshal.loads(file.read(*_SIZE.unpack(head)))
