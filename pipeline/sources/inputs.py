"""Input shards: which files a pattern matches, and what identifies the content of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from pipeline.schema import UserError
from pipeline.sources.listing import find_files
from pipeline.sources.read import without_suffix
from pipeline.storage.commits import read_commit
from pipeline.storage.fingerprints import sha256_of_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputShard:
    """An input file and the fingerprint of its content."""

    path: str
    file: str  # its path below the common folder of the inputs, which names it in annotations and ledger
    name: str  # the same without suffix and slashes; outputs are named after it
    fingerprint: str
    size_bytes: int
    updated_sec: float  # since 1970

    @property
    def stamp(self) -> dict[str, Any]:
        """What shows, without reading the file, that it is the same as before."""
        return {"path": self.path, "size_bytes": self.size_bytes, "updated_sec": self.updated_sec}


def match_inputs(patterns: str, *, output_of: Callable[[str], str] | None = None) -> tuple[InputShard, ...]:
    """Returns the files that `patterns` means (see `listing.find_files`), by name.

    Args:
        patterns: the value of --input.
        output_of: the name of an input -> the path of the file that is made from it. If the commit record there has
            the input's `stamp`, the fingerprint is taken from the record and the input is not read.

    Raises:
        UserError: no file matches, a file cannot be read, or two share a name (outputs are named after inputs).
    """
    by_name: dict[str, InputShard] = {}
    for found in find_files(patterns, option="--input"):
        name = without_suffix(found.name).replace("/", "--")
        if name in by_name:
            raise UserError(
                f"--input matches {by_name[name].path} and {found.path}, both named {name!r}; rename one of them"
            )
        shard = InputShard(
            path=found.path,
            file=found.name,
            name=name,
            fingerprint="",
            size_bytes=found.size_bytes,
            updated_sec=found.updated_sec,
        )
        record = read_commit(output_of(name)) if output_of else None
        if record is not None and record.get("input") == shard.stamp:
            fingerprint = record["fingerprint"]["input"]
        else:
            try:
                fingerprint = file_fingerprint(shard.path, shard.size_bytes, shard.updated_sec)
            except OSError as error:
                raise UserError(
                    f"--input {shard.path} cannot be read ({error.strerror}); repair or remove it, and run again"
                ) from error
        by_name[name] = dataclasses.replace(shard, fingerprint=fingerprint)
    return tuple(by_name.values())


def file_fingerprint(path: str, size_bytes: int, updated_sec: float) -> str:
    """Returns the SHA-256 of a local file; for a remote one its size and time, since reading all of it is slow."""
    if not os.path.exists(path):
        return f"{size_bytes}-{updated_sec:.3f}"
    return sha256_of_file(path)
