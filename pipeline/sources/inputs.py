"""Input shards: which files a pattern matches, and what identifies the content of one."""

from __future__ import annotations

import dataclasses
import os

from pipeline.schema import UserError
from pipeline.sources.listing import find_files
from pipeline.sources.read import without_suffix
from pipeline.storage.fingerprints import sha256_of_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputShard:
    """An input file and the fingerprint of its content."""

    path: str
    file: str  # its path below the common folder of the inputs, which names it in annotations and ledger
    name: str  # the same without suffix and slashes; outputs are named after it
    fingerprint: str  # "" until it is computed
    size_bytes: int
    updated_sec: float  # since 1970


def list_inputs(patterns: str) -> tuple[InputShard, ...]:
    """Returns the files that `patterns` means (see `listing.find_files`), by name, without fingerprints.

    Raises:
        UserError: no file matches, or two share a name (outputs are named after inputs).
    """
    by_name: dict[str, InputShard] = {}
    for found in find_files(patterns, option="--input"):
        name = without_suffix(found.name).replace("/", "--")
        if name in by_name:
            raise UserError(
                f"--input matches {by_name[name].path} and {found.path}, both named {name!r}; rename one of them"
            )
        by_name[name] = InputShard(
            path=found.path,
            file=found.name,
            name=name,
            fingerprint="",
            size_bytes=found.size_bytes,
            updated_sec=found.updated_sec,
        )
    return tuple(by_name.values())


def with_fingerprint(shard: InputShard) -> InputShard:
    """Returns `shard` with its fingerprint; a local file is read for it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        fingerprint = file_fingerprint(shard.path, shard.size_bytes, shard.updated_sec)
    except OSError as error:
        raise UserError(
            f"--input {shard.path} cannot be read ({error.strerror}); repair or remove it, and run again"
        ) from error
    return dataclasses.replace(shard, fingerprint=fingerprint)


def file_fingerprint(path: str, size_bytes: int, updated_sec: float) -> str:
    """Returns the SHA-256 of a local file; for a remote one its size and time, since reading all of it is slow."""
    if not os.path.exists(path):
        return f"{size_bytes}-{updated_sec:.3f}"
    return sha256_of_file(path)
