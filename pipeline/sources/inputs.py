"""Input files: which ones a pattern matches, and what tells that one has changed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.sources.webdataset import shard_name
from pipeline.storage.commits import read_commit
from pipeline.storage.disk import one_line
from pipeline.storage.fingerprints import sha256_of_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputShard:
    """An input file and the fingerprint of its content."""

    path: str
    name: str
    fingerprint: str
    size_bytes: int
    updated_sec: float  # since 1970

    @property
    def stamp(self) -> dict[str, Any]:
        """What tells, without reading it, that the file is the same as before."""
        return {"path": self.path, "size_bytes": self.size_bytes, "updated_sec": self.updated_sec}


def match_inputs(pattern: str, *, made_of: Callable[[str], str] | None = None) -> tuple[InputShard, ...]:
    """Returns the files that `pattern` matches, by path.

    Args:
        pattern: a path or glob.
        made_of: the name of an input -> the path of a file made of it. If the commit record there has the input's
            `stamp`, the input is not read again for its fingerprint.

    Raises:
        UserError: none matches, one cannot be read, or two share a name (outputs are named after inputs).
    """
    try:
        found = FileSystems.match([pattern])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise UserError(f"--input {pattern}: {one_line(error)}") from error
    by_name: dict[str, InputShard] = {}
    for entry in sorted(found, key=lambda entry: entry.path):
        if os.path.isdir(entry.path):
            raise UserError(f"--input {entry.path} is a folder; give its shards, such as '{entry.path}/*.tar'")
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
        record = read_commit(made_of(name)) if made_of else None
        if record is not None and record.get("input") == shard.stamp:
            fingerprint = record["fingerprint"]["input"]
        else:
            try:
                fingerprint = file_fingerprint(shard.path, shard.size_bytes, shard.updated_sec)
            except OSError as error:
                raise UserError(
                    f"--input {shard.path} cannot be read ({error.strerror}); mend it and run again"
                ) from error
        by_name[name] = dataclasses.replace(shard, fingerprint=fingerprint)
    if not by_name:
        raise UserError(f"--input {pattern} matches no file; give the path or glob of your tar shards, in quotes")
    return tuple(by_name.values())


def file_fingerprint(path: str, size_bytes: int, updated_sec: float) -> str:
    """Returns the SHA-256 of a local file; of a remote one its size and time, since reading it all would cost."""
    if not os.path.exists(path):
        return f"{size_bytes}-{updated_sec:.3f}"
    return sha256_of_file(path)
