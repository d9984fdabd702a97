"""Commit records: what counts as finished, and what it was made of.

A file counts once its record, written after it, is there and fits. So nothing is ever renamed, object stores serve,
and a killed run goes on from its records.
"""

from __future__ import annotations

import glob
import hashlib
import posixpath
from collections.abc import Mapping
from typing import Any

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME
from pipeline.storage.beam_files import read_json, write_bytes, write_json
from pipeline.storage.disk import check_writable, disk_error, one_line

COMMIT_SUFFIX = ".commit.json"
_CHUNK_BYTES = 1 << 22


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
        raise disk_error(error, directory) or UserError(f"--output {directory}: {one_line(error)}") from error


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest, size_bytes = hashlib.sha256(), 0
    with FileSystems.open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()
