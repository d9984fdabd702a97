"""Small files on any file system that Beam knows, local or remote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

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


@contextlib.contextmanager
def written_locally(path: str) -> Iterator[str]:
    """Gives the local path where the file for `path` is to be written.

    For a local path it is the path itself. For a store, which TensorFlow reaches in its own way and without the options
    of Beam, it is a temporary one of the same name; what lies in its folder on a clean exit is written to the store.
    """
    if "://" not in path:
        yield path
        return
    folder, name = posixpath.split(path)
    with tempfile.TemporaryDirectory(prefix="mofi-") as local:
        yield os.path.join(local, name)
        for file in sorted(os.listdir(local)):
            with open(os.path.join(local, file), "rb") as source, FileSystems.create(f"{folder}/{file}") as target:
                shutil.copyfileobj(source, target, _COPIED_BYTES)


def delete_matching(patterns: Sequence[str]) -> None:
    """Deletes the files that the patterns match, if any."""
    delete_files(match_paths(patterns))


def delete_files(paths: Sequence[str]) -> None:
    """Deletes the files at `paths`, which are never taken for patterns; those that are gone already are no error."""
    remote = []
    for path in paths:
        if "://" in path:
            remote.append(escaped(path))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
    if remote:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of regular expressions that Beam makes of brackets
            FileSystems.delete(remote)


def escaped(path: str) -> str:
    """Returns the pattern that matches `path` alone."""
    return re.sub(r"([*?[])", r"[\1]", path)


def match_paths(patterns: Sequence[str]) -> list[str]:
    """Returns the paths of the files that the patterns match."""
    return [entry.path for match in FileSystems.match(list(patterns)) for entry in match.metadata_list]


def list_folder(folder: str) -> dict[str, int | None]:
    """Returns name -> size of the files in `folder`, which may be missing; of a local one the sizes are None.

    Local sizes would take a call a file, and a listing takes one for hundreds.
    """
    if "://" not in folder:
        try:
            return dict.fromkeys(os.listdir(folder))
        except FileNotFoundError:
            return {}
    entries = FileSystems.match([posixpath.join(folder, "*")])[0].metadata_list
    return {posixpath.basename(entry.path): entry.size_in_bytes for entry in entries}


class HashedFile:
    """A file that is written from start to end, with the number and the SHA-256 of its bytes so far."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        """In hexadecimal."""
        return self._digest.hexdigest()

    def write(self, content: Any) -> int:
        """Writes bytes, and returns how many."""
        self._digest.update(content)
        self._file.write(content)
        self.size_bytes += len(content)
        return len(content)

    def tell(self) -> int:
        """Returns the number of bytes written."""
        return self.size_bytes

    def flush(self) -> None:
        """Does nothing: the file counts once it is closed."""

    def close(self) -> None:
        """Does nothing: `same_bytes_file` closes the file."""


@contextlib.contextmanager
def same_bytes_file(path: str) -> Iterator[HashedFile]:
    """Opens the file at `path` for a writer beside whom another may write the same bytes there.

    An object store shows an object once it is whole. A local file is not emptied first: whoever reads it while equal
    bytes are written over it sees nothing change.
    """
    if "://" in path:
        with FileSystems.create(path, compression_type="uncompressed") as file:
            yield HashedFile(file)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        hashed = HashedFile(file)
        yield hashed
        file.truncate()
