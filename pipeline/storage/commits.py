"""Commit records: which files are finished, and what they depend on.

A file counts once its record, which is written after it, exists and fits it. So nothing is ever renamed, object stores
will do, and a killed run resumes from its records.
"""

from __future__ import annotations

import glob
import hashlib
import posixpath
from collections.abc import Mapping
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME
from pipeline.storage.beam_files import delete_files, read_json, write_bytes, write_json
from pipeline.storage.disk import check_writable, disk_error, one_line

COMMIT_SUFFIX = ".commit.json"


def uncommit(path: str) -> None:
    """Deletes the commit record of the file at `path`, if any: call it before the file is written again.

    Otherwise the old record would pass for that of whatever a kill leaves there, if the size happens to fit.
    """
    if FileSystems.exists(path + COMMIT_SUFFIX):
        delete_files([path + COMMIT_SUFFIX])


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
        if FileSystems.get_filesystem(path).metadata(path).size_in_bytes != record["size_bytes"]:
            return None
    except (BeamIOError, KeyError):
        return None
    return record


def is_current(path: str, fingerprint: Mapping[str, str]) -> bool:
    """Returns whether the file at `path` is finished and was made from the inputs, code and config of `fingerprint`."""
    record = read_commit(path)
    return record is not None and record.get("fingerprint") == fingerprint


def check_format_version(path: str, record: Mapping[str, Any]) -> None:
    """Checks that `record`, read from `path`, has this code's format version.

    Raises:
        UserError: it has another.
    """
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this code writes {FORMAT_VERSION}; choose another --output"
        )


def prepare_output(directory: str, *, needed_bytes: int = 0) -> None:
    """Checks that files can be written to `directory`, that `needed_bytes` are free there, and that it holds no set of
    another format version. Creates the directory if it is missing.

    Raises:
        UserError: one of these does not hold, or the path contains a glob pattern.
    """
    if glob.has_magic(directory):
        raise UserError(f"--output {directory} contains a pattern character (*, ? or [); choose a folder without")
    manifest = read_json(posixpath.join(directory, MANIFEST_NAME))
    if manifest is not None:
        check_format_version(posixpath.join(directory, MANIFEST_NAME), manifest)
    if "://" not in directory:
        check_writable(directory, needed_bytes=needed_bytes)
        return
    probe = posixpath.join(directory, ".writable")
    try:
        write_bytes(probe, b"1")
        delete_files([probe])
    except Exception as error:  # each store's library raises errors of its own
        raise disk_error(error, directory) or UserError(
            f"--output {directory} may not be written ({one_line(error)}); choose another --output, or check its "
            "permissions"
        ) from error


def _size_and_sha256(path: str) -> tuple[int, str]:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type] # pragma: no mutate: capitals say the same
        return file.tell(), digest.hexdigest()
