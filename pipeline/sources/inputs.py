"""Input shards: which files a pattern matches, and what identifies the content of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.sources.read import shard_name
from pipeline.storage.commits import read_commit
from pipeline.storage.disk import one_line
from pipeline.storage.fingerprints import sha256_of_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputShard:
    """An input file and the fingerprint of its content."""

    path: str
    name: str  # without folder and suffix; outputs are named after it
    fingerprint: str
    size_bytes: int
    updated_sec: float  # since 1970

    @property
    def stamp(self) -> dict[str, Any]:
        """What shows, without reading the file, that it is the same as before."""
        return {"path": self.path, "size_bytes": self.size_bytes, "updated_sec": self.updated_sec}


def match_inputs(pattern: str, *, output_of: Callable[[str], str] | None = None) -> tuple[InputShard, ...]:
    """Returns the files that `pattern` matches, by path.

    Args:
        pattern: a path or glob.
        output_of: the name of an input -> the path of the file that is made from it. If the commit record there has
            the input's `stamp`, the fingerprint is taken from the record and the input is not read.

    Raises:
        UserError: no file matches, a file cannot be read, or two share a name (outputs are named after inputs).
    """
    by_name: dict[str, InputShard] = {}
    for entry in find_files(pattern, option="--input"):
        name = shard_name(entry.path)
        if name in by_name:
            raise UserError(
                f"--input matches {by_name[name].path} and {entry.path}, both named {name!r}; rename one of them"
            )
        shard = InputShard(
            path=entry.path,
            name=name,
            fingerprint="",
            size_bytes=entry.size_in_bytes,
            updated_sec=entry.last_updated_in_seconds,
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


def find_files(pattern: str, *, option: str) -> list[FileMetadata]:
    """Returns the files that `pattern`, the value of the command's `option`, matches, by path.

    Raises:
        UserError: no file matches, or a folder does.
    """
    try:
        found = FileSystems.match([pattern])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise UserError(f"{option} {pattern}: {one_line(error)}; give a path or glob of tars") from error
    for entry in found:
        if os.path.isdir(entry.path):
            raise UserError(f"{option} {entry.path} is a folder; give its shards, such as '{entry.path}/*.tar'")
    if not found:
        raise UserError(f"{option} {pattern} matches no file; give the path or glob of your tar shards, in quotes")
    return sorted(found, key=lambda entry: entry.path)


def file_fingerprint(path: str, size_bytes: int, updated_sec: float) -> str:
    """Returns the SHA-256 of a local file; for a remote one its size and time, since reading all of it is slow."""
    if not os.path.exists(path):
        return f"{size_bytes}-{updated_sec:.3f}"
    return sha256_of_file(path)
