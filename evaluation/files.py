"""Files that are whole or not there, and what is known of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evaluation.errors import UserError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the name `path` once it is whole: a kill leaves what stood under that name before."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` at `path`, whole or not at all."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def written(folder: Path, option: str) -> Iterator[None]:
    """Runs what writes below `folder`, which `option` names.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written ({error}); choose another, or free some space") from error


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_array(path: Path) -> np.ndarray:
    """Returns the array in a .npy file, memory-mapped.

    Raises:
        UserError: it holds none, or Python objects.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); write it with numpy.save") from error
    except (ValueError, EOFError):  # numpy's words advise to trust the file
        found = None
    if not isinstance(found, np.ndarray):  # of numpy.savez there come several
        raise UserError(f"{path} is no array of numbers in NumPy's format; write it with numpy.save")
    return found


def read_kept(path: Path, *, ndim: int, lengths: Collection[int], remedy: str) -> np.ndarray | None:
    """Returns the array that an earlier run kept at `path`; None where it is missing or, with a warning, damaged.

    Args:
        path: of a .npy file.
        ndim: of its dimensions.
        lengths: of the first one, those that are possible.
        remedy: what is done otherwise, such as "embedding again".
    """
    if not path.exists():
        return None
    try:
        found = np.load(path, allow_pickle=False)
        if found.ndim != ndim:
            raise ValueError(f"{found.ndim} dimensions of {ndim}")
        if len(found) not in lengths:
            raise ValueError(f"{len(found)} rows of {max(lengths)}")
    except (OSError, ValueError, EOFError) as error:
        print(f"warning: {path} cannot be read ({error}); {remedy}", file=sys.stderr)
        return None
    return found


def read_ids(path: Path) -> list[str]:
    """Returns the ids in a file, one a line.

    Raises:
        UserError: it cannot be read, or an id stands there twice.
    """
    try:
        # Only a newline ends an id: `str.splitlines` would cut at other characters too.
        ids = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); write one id a line, in UTF-8") from error
    if ids[-1] == "":
        ids.pop()  # after the last newline
    if len(set(ids)) != len(ids):
        raise UserError(f"{path} names an id twice; each row needs one of its own")
    return ids
