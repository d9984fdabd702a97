"""The plan: input files -> units. New and changed files are scanned by workers; of the others the records serve.

A file larger than a unit is split, if its format allows it; small files that follow each other are put into a unit
together. Once a file is in a unit it stays there: one more input makes further units, and moves none.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError

from pipeline.config import UnitConfig
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import UserError
from pipeline.sources import WHOLE_SHARD, ShardPart
from pipeline.sources.inputs import InputShard, with_fingerprint
from pipeline.sources.read import split_shard
from pipeline.storage.disk import one_line
from pipeline.storage.input_scans import Scan, read_scans, replace_scans, write_scans
from pipeline.units import Part, Unit

_ROW_BYTES_MIN = 2048  # of a picture and a text in a tar: a header and a block each
_FILES_PER_SCAN = 256
_SCANS_PER_THREAD = 4
_NAME_BYTES = 120  # of a unit's name: names of files are at most 255 bytes long


def plan(
    shards: Sequence[InputShard],
    output: str,
    *,
    config: UnitConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> tuple[Unit, ...]:
    """Returns the units of `shards`, in the order of the shards. It reads one file if no input is new.

    Raises:
        UserError: an input cannot be read.
    """
    limits = (config.unit_rows, config.unit_bytes)
    known, paths = read_scans(output)
    new = [shard for shard in shards if _scan_that_fits(shard, known, limits) is None]
    if new:
        print(f"plan: {len(shards)} files, {len(new)} of them new", flush=True)
        _scan_all(new, output, limits, known, runner, beam_args)
        known, paths = read_scans(output)
    scans = _with_units([_scan_that_fits(shard, known, limits) for shard in shards], limits)
    if new or len(paths) > 1:
        others = [known[name][-1] for name in known.keys() - {shard.name for shard in shards}]
        replace_scans(output, [*scans, *others], paths)
    return _units_of(shards, scans)


def _scan_that_fits(shard: InputShard, known: Mapping[str, Sequence[Scan]], limits: tuple[int, int]) -> Scan | None:
    """Returns the record of the file as it is; None if it is new."""
    fitting = [scan for scan in known.get(shard.name, ()) if scan.fits(shard, limits)]
    return max(fitting, key=lambda scan: scan.unit, default=None)  # one with a unit before one without


def _scan_all(
    shards: Sequence[InputShard],
    output: str,
    limits: tuple[int, int],
    known: Mapping[str, Sequence[Scan]],
    runner: RunnerConfig,
    beam_args: tuple[str, ...],
) -> None:
    """Scans files: on this machine in threads, since hashing needs no interpreter; elsewhere in a Beam job."""
    num_threads = os.cpu_count() or 1
    step = min(_FILES_PER_SCAN, math.ceil(len(shards) / (num_threads * _SCANS_PER_THREAD)))
    # A file that changed stays in its unit.
    units = {
        name: max((scan.unit for scan in scans if scan.limits == limits), default="") for name, scans in known.items()
    }
    lists = [
        [(shard, units.get(shard.name, "")) for shard in shards[first : first + step]]
        for first in range(0, len(shards), step)
    ]
    scan = functools.partial(scan_files, output=output, limits=limits)
    if runner.runner == "direct":
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(scan, lists))
        return
    with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
        job | "Files" >> beam.Create(lists) | "Spread" >> beam.Reshuffle() | "Scan" >> beam.Map(scan)


def scan_files(files: Sequence[tuple[InputShard, str]], *, output: str, limits: tuple[int, int]) -> None:
    """Writes the records of `files`: (file, name of its unit, "" if it is in none).

    Raises:
        UserError: a file cannot be read.
    """
    write_scans(output, [_scan(shard, unit, limits) for shard, unit in files])


def _scan(shard: InputShard, unit: str, limits: tuple[int, int]) -> Scan:
    parts: tuple[ShardPart, ...] = (WHOLE_SHARD,)
    if limits[0] and shard.size_bytes > _small_bytes(limits):
        try:
            parts = split_shard(shard.path, max_rows=limits[0], max_bytes=limits[1])
        except (OSError, BeamIOError) as error:
            raise UserError(
                f"--input {shard.path} cannot be read ({one_line(error)}); repair or remove it, and run again"
            ) from error
    return Scan(
        name=shard.name,
        path=shard.path,
        size_bytes=shard.size_bytes,
        updated_sec=shard.updated_sec,
        fingerprint=with_fingerprint(shard).fingerprint,
        limits=limits,
        parts=parts,
        unit=unit if len(parts) == 1 else "",
    )


def _small_bytes(limits: tuple[int, int]) -> int:
    """Returns how large files in one unit may be together: they cannot have more rows than a unit may."""
    if not limits[0]:
        return -1  # pragma: no mutate: any size below 0 keeps two files apart
    return min(limits[1], limits[0] * _ROW_BYTES_MIN)


def _with_units(scans: Iterable[Scan | None], limits: tuple[int, int]) -> list[Scan]:
    """Returns `scans`, in their order, with the unit of each that is not split; those that have one keep it."""
    placed = []
    name, num_bytes = "", 0  # pragma: no mutate: without a name the size is not read
    for scan in scans:
        assert scan is not None  # each file was scanned, or its scan raised an error
        if scan.unit or len(scan.parts) > 1:
            name = ""  # pragma: no mutate: None would do; files in a unit follow each other
        elif not name or num_bytes + scan.size_bytes > _small_bytes(limits):
            name, num_bytes = _unit_name(scan.name), scan.size_bytes
            scan = dataclasses.replace(scan, unit=name)
        else:
            num_bytes += scan.size_bytes
            scan = dataclasses.replace(scan, unit=name)
        placed.append(scan)
    return placed


def _units_of(shards: Sequence[InputShard], scans: Sequence[Scan]) -> tuple[Unit, ...]:
    units: dict[str, list[Part]] = {}
    for shard, scan in zip(shards, scans, strict=True):  # pragma: no mutate: there is a scan of each shard
        for rows in scan.parts:
            unit = scan.unit or f"{_unit_name(scan.name)}@{rows.first_row:09d}"
            part = Part(path=shard.path, file=shard.file, fingerprint=scan.fingerprint, rows=rows)
            units.setdefault(unit, []).append(part)
    return tuple(Unit(name=name, parts=tuple(parts)) for name, parts in units.items())


def _unit_name(shard: str) -> str:
    """Returns the name of the unit whose first file is the input `shard`: without a slash, and not too long."""
    name = shard.replace("/", "--")
    if len(name.encode()) <= _NAME_BYTES:
        return name
    return name.encode()[: _NAME_BYTES // 2].decode(errors="ignore") + hashlib.sha256(name.encode()).hexdigest()[:16]
