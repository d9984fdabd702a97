"""Small files on any file system that Beam knows, local or remote."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

from apache_beam.io.filesystems import FileSystems

_COPIED_BYTES = 1 << 22


def write_json(path: str, value: Any) -> None:
    """Writes `value` at `path`; equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_bytes(path: str, content: bytes) -> None:
    """Writes `content` at `path`, local or remote."""
    with FileSystems.create(path) as file:
        file.write(content)


def read_json(path: str) -> dict[str, Any] | None:
    """Returns the object at `path`; None if the file is missing, or was cut short by a kill."""
    if not FileSystems.exists(path):
        return None
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
    except ValueError:
        return None
    return content


def read_bytes(path: str) -> bytes:
    """Returns the content of the file at `path`, local or remote."""
    with FileSystems.open(path) as file:
        content: bytes = file.read()
    return content


def copy_file(source: str, target: str) -> None:
    """Copies the file at `source` to `target`; either may be local or remote."""
    with FileSystems.open(source) as read, FileSystems.create(target) as written:
        while chunk := read.read(_COPIED_BYTES):
            written.write(chunk)


def delete_file(path: str) -> None:
    """Deletes the file at `path`, which may have characters that patterns are made of."""
    if "://" not in path:
        os.remove(path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regular expressions that Beam makes of brackets
        FileSystems.delete([re.sub(r"([*?[])", r"[\1]", path)])


def delete_matching(patterns: Sequence[str]) -> None:
    """Deletes the files that the patterns match, if any."""
    delete_files(match_paths(patterns))


def delete_files(paths: Sequence[str]) -> None:
    """Deletes the files at `paths`."""
    if paths:
        FileSystems.delete(list(paths))


def match_paths(patterns: Sequence[str]) -> list[str]:
    """Returns the paths of the files that the patterns match."""
    return [entry.path for match in FileSystems.match(list(patterns)) for entry in match.metadata_list]
