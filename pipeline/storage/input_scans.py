"""What is known of each input file, so that no later run opens it again: fingerprint, parts, and the unit it is in.

The records of all files are one file, or a few after a kill, called by the hash of its content: a file that was cut
short does not have its own hash, and is not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.sources import ShardPart
from pipeline.sources.inputs import InputShard
from pipeline.storage.beam_files import delete_files, list_folder, read_bytes, write_bytes

SCANS_FOLDER = "units/inputs"
_NAME_LENGTH = 32  # digits of the hash that a file is called by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What is known of an input file."""

    name: str
    """Of the input, which the record is found by."""
    path: str
    size_bytes: int
    updated_sec: float
    fingerprint: str
    limits: tuple[int, int]
    """The rows and bytes of a unit that the file was split for."""
    parts: tuple[ShardPart, ...]
    """The parts that the file is split into; one of all rows if it is not."""
    unit: str = ""
    """Name of the unit that the file was put into, along with others; "" until it is, and where it is split."""

    def fits(self, shard: InputShard, limits: tuple[int, int]) -> bool:
        """Returns whether the record is of this file as it is now, and for units of these limits."""
        stamp = (self.path, self.size_bytes, self.updated_sec, self.limits)
        return stamp == (shard.path, shard.size_bytes, shard.updated_sec, limits)


def read_scans(output: str) -> tuple[dict[str, list[Scan]], list[str]]:
    """Returns the records by the input's name, and the paths of the files they are in.

    A file that changed has several until they are replaced: `Scan.fits` tells which is that of the file as it is.
    """
    scans: dict[str, list[Scan]] = {}
    paths = [
        posixpath.join(output, SCANS_FOLDER, file) for file in sorted(list_folder(posixpath.join(output, SCANS_FOLDER)))
    ]
    for path in paths:
        content = read_bytes(path)
        if _file_name(content) == posixpath.basename(path):
            for record in json.loads(content):
                scan = _scan_of(record)
                scans.setdefault(scan.name, []).append(scan)
    return scans, paths


def write_scans(output: str, scans: Iterable[Scan]) -> str:
    """Returns the path of the file that it writes the records to."""
    records = [dataclasses.astuple(scan) for scan in sorted(scans, key=lambda scan: scan.name)]
    content = json.dumps(records, separators=(",", ":")).encode()  # pragma: no mutate: there are no objects
    path = posixpath.join(output, SCANS_FOLDER, _file_name(content))
    write_bytes(path, content)
    return path


def replace_scans(output: str, scans: Iterable[Scan], old_paths: Iterable[str]) -> None:
    """Writes all records to one file, and then deletes those that it replaces."""
    path = write_scans(output, scans)
    delete_files([old for old in old_paths if old != path])


def _file_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_NAME_LENGTH] + ".json"


def _scan_of(record: Sequence[Any]) -> Scan:
    name, path, size_bytes, updated_sec, fingerprint, limits, parts, unit = record
    return Scan(
        name=name,
        path=path,
        size_bytes=size_bytes,
        updated_sec=updated_sec,
        fingerprint=fingerprint,
        limits=(limits[0], limits[1]),
        parts=tuple(ShardPart(*part) for part in parts),
        unit=unit,
    )
