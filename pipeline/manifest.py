"""Commit records: what counts as finished, and what it was made of.

A file counts once its record, written after it, is there and fits. So nothing is ever renamed, object stores serve,
and a killed run goes on from its records.
"""

from __future__ import annotations

import ast
import dataclasses
import glob
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.disk import check_writable, disk_error
from pipeline.schema import UserError
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME
from pipeline.sources.webdataset import shard_name

COMMIT_SUFFIX = ".commit.json"
_CHUNK_BYTES = 1 << 22


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
        raise UserError(f"--input {pattern}: {_one_line(error)}") from error
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


def sha256_of_file(path: str) -> str:
    """Returns the SHA-256 of a local file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_files(patterns: Iterable[str]) -> list[str]:
    """Returns the files that the glob patterns match, which are relative to the folder of this package."""
    root = os.path.dirname(os.path.abspath(__file__))
    return [path for pattern in patterns for path in glob.glob(os.path.join(root, pattern))]


def code_fingerprint(paths: Iterable[str]) -> str:
    """Returns a hash of Python files that comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [item for item in body if not _is_docstring(item)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def config_fingerprint(config: Any) -> str:
    """Returns a hash of a config dataclass."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()


def uncommit(path: str) -> None:
    """Deletes the commit record of the file at `path`, if any: call it before the file is written anew.

    A record that outlived its file would vouch for whatever a kill left there, if only the size fits.
    """
    if FileSystems.exists(path + COMMIT_SUFFIX):
        FileSystems.delete([path + COMMIT_SUFFIX])


def commit(path: str, record: Mapping[str, Any]) -> None:
    """Writes the record that makes the finished file at `path` count."""
    size_bytes, sha256 = _size_and_sha256(path)
    write_json(
        path + COMMIT_SUFFIX,
        {"format_version": FORMAT_VERSION, "size_bytes": size_bytes, "sha256": sha256, **record},
    )


def read_commit(path: str) -> dict[str, Any] | None:
    """Returns the commit record of the file at `path`; None if there is none, or it does not fit the file.

    Raises:
        UserError: the record was written by another format version.
    """
    record = read_json(path + COMMIT_SUFFIX)
    if record is None:
        return None
    check_format_version(path + COMMIT_SUFFIX, record)
    try:
        if FileSystems.match([path])[0].metadata_list[0].size_in_bytes != record["size_bytes"]:
            return None
    except (BeamIOError, IndexError, KeyError):
        return None
    return record


def check_format_version(path: str, record: Mapping[str, Any]) -> None:
    """Returns nothing when `record`, read from `path`, has this code's format version.

    Raises:
        UserError: it has another.
    """
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this code writes {FORMAT_VERSION}; choose another --output"
        )


def prepare_output(directory: str, *, needed_bytes: int = 0) -> None:
    """Returns when `directory` exists, takes files, has `needed_bytes` free and holds no set of another version.

    Raises:
        UserError: one of these does not hold, or the path would match others.
    """
    if glob.has_magic(directory):
        raise UserError(f"--output {directory} has a sign of patterns (*, ? or [); choose a folder without")
    manifest = read_json(posixpath.join(directory, MANIFEST_NAME))
    if manifest is not None:
        check_format_version(posixpath.join(directory, MANIFEST_NAME), manifest)
    if "://" not in directory:
        check_writable(directory, needed_bytes=needed_bytes)
        return
    probe = posixpath.join(directory, ".writable")
    try:
        write_bytes(probe, b"1")
        FileSystems.delete([probe])
    except (OSError, BeamIOError) as error:
        raise disk_error(error, directory) or UserError(f"--output {directory}: {_one_line(error)}") from error


def worker_error(error: BaseException, output: str) -> UserError | None:
    """Returns the user's view of an error out of a Beam job: a UserError of a stage, or a disk error; else None."""
    if isinstance(error, ImportError) and "apache_beam[gcp]" in str(error):
        return UserError("--runner dataflow needs Google's client libraries; pip install 'apache-beam[gcp]'")
    if isinstance(error, ValueError) and "validations errors" in str(error):
        return UserError(_one_line(error))  # Beam's own words on its own options
    if isinstance(error, ValueError) and "Unable to get filesystem" in str(error):
        return UserError(_one_line(error))  # gs:// and its like without their libraries
    if isinstance(error, UserError):
        return UserError(re.sub(r" \[while running '.*'\]$", "", str(error)))
    told = re.search(r"UserError: (.*?)(?: \[while running|\n|$)", str(error))
    return UserError(told.group(1)) if told else disk_error(error, output)


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
        return json.loads(read_bytes(path))
    except ValueError:
        return None


def read_bytes(path: str) -> bytes:
    """Returns the content of the file at `path`, local or remote."""
    with FileSystems.open(path) as file:
        return file.read()


def delete_matching(patterns: Sequence[str]) -> None:
    """Deletes the files that the patterns match, if any."""
    paths = match_paths(patterns)
    if paths:
        FileSystems.delete(paths)


def match_paths(patterns: Sequence[str]) -> list[str]:
    """Returns the paths of the files that the patterns match."""
    return [entry.path for match in FileSystems.match(list(patterns)) for entry in match.metadata_list]


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest, size_bytes = hashlib.sha256(), 0
    with FileSystems.open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
