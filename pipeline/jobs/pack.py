"""The job behind `pack_pairs`: input shards -> shards of raw pairs. It runs no model; finished shards are skipped."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import posixpath
from collections.abc import Mapping, Sequence, Set
from typing import Any

import apache_beam as beam

from pipeline.config import PackConfig
from pipeline.images.decode import decode_image
from pipeline.images.stored import stored_image
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import LabelledImage, Rejection, Row, UserError
from pipeline.shard_format import FORMAT_VERSION, INDEX_SUFFIX, MANIFEST_NAME, ShardWriter, shard_pattern
from pipeline.sources.inputs import InputShard
from pipeline.sources.layout import check_layout, cure_of
from pipeline.sources.read import read_shard, shard_name
from pipeline.stages.validate import validate_row
from pipeline.storage.beam_files import delete_files, delete_matching, match_paths, write_json, written_locally
from pipeline.storage.commits import COMMIT_SUFFIX, commit, is_current, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files

_DATASET_NAME = "pairs"
_HASH_LENGTH = 8  # digits in the name of a file
_BYTES_PER_WORKER = 64 << 20  # what one process packs in the seconds in which another one starts
_CODE = (  # what a packed shard depends on, beside input and config
    "schema.py",
    "jobs/pack.py",
    "images/*.py",
    "shard_format.py",
    "row_stage.py",
    "sources/*.py",
    "stages/validate.py",
)


def pack(
    shards: Sequence[InputShard],
    output: str,
    *,
    config: PackConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the manifest of the set of raw pairs at `output`; shards finished before are skipped.

    A shard of the set is called after its input and a hash of that one's content, so further inputs change no other
    shard, wherever they lie. Files of the set that the manifest does not name are deleted once it is written.

    Raises:
        UserError: no pair is usable, or the inputs are badly packed.
    """
    # A set without its manifest is unfinished.
    delete_matching([posixpath.join(output, MANIFEST_NAME)])
    fingerprint = {"config": config_fingerprint(config), "code": code_fingerprint(package_files(_CODE))}
    # Inputs of equal content are packed once.
    tasks = {posixpath.join(output, _file_of(shard)): shard for shard in shards}
    pending = [
        (shard, path)
        for path, shard in tasks.items()
        if not is_current(path, {"input": shard.fingerprint, **fingerprint})
    ]
    print(f"pack_pairs: {len(tasks)} shards, {len(tasks) - len(pending)} finished before", flush=True)
    if pending:
        num_tasks = _num_tasks([shard for shard, _ in pending])
        with beam.Pipeline(options=pipeline_options(runner, beam_args, num_tasks=num_tasks)) as job:
            (
                job
                | "Shards" >> beam.Create(pending)
                | "Spread" >> beam.Reshuffle()
                | "Pack" >> beam.MapTuple(functools.partial(pack_shard, config=config, fingerprint=fingerprint))
            )
    manifest = _write_manifest(tasks, output, config)
    _delete_others(output, {shard["file"] for shard in manifest["shards"]})
    return manifest


def _num_tasks(shards: Sequence[InputShard]) -> int:
    return min(len(shards), sum(shard.size_bytes for shard in shards) // _BYTES_PER_WORKER)


def pack_shard(shard: InputShard, path: str, *, config: PackConfig, fingerprint: Mapping[str, str]) -> None:
    """Writes the usable pairs of `shard` to `path`, in order, and the commit record after them.

    The record holds `fingerprint`: hashes of all that the file depends on, beside the input.
    """
    uncommit(path)
    rejections: collections.Counter[str] = collections.Counter()
    num_rows = num_records = 0
    with written_locally(path) as local_path, ShardWriter(local_path) as writer:
        for pair in read_shard(shard.path, config=config.members):
            num_rows += 1
            row = pair if isinstance(pair, Rejection) else validate_row(Row(pair=pair), config.validate)
            if isinstance(row, Rejection):
                rejections[row.reason] += 1
                continue
            try:
                decode_image(row.pair.image)  # the trainer reads every picture, and has no ledger
                stored = stored_image(row.pair.image, max_side_px=config.store.max_side_px)
            except ValueError:
                rejections["broken_image"] += 1
                continue
            writer.write(
                LabelledImage(
                    image=stored.encoded,
                    image_id=row.pair.image_id,
                    text=row.pair.text,
                    width_px=stored.width_px,
                    height_px=stored.height_px,
                    fields=row.pair.fields,
                )
            )
            num_records += 1
    commit(
        path,
        {
            "num_rows": num_rows,
            "num_records": num_records,
            "rejections": dict(rejections),
            "fingerprint": {"input": shard.fingerprint, **fingerprint},
        },
    )


def _file_of(shard: InputShard) -> str:
    digest = hashlib.sha256(shard.fingerprint.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{_DATASET_NAME}-{shard_name(shard.path)}-{digest}.tfrecord"


def _delete_others(output: str, files: Set[str]) -> None:
    """Deletes the shards of earlier runs in `output` that are not among `files`, with what lies beside them."""
    patterns = [posixpath.join(output, pattern) for pattern in (f"{_DATASET_NAME}-*.tfrecord*", shard_pattern("pairs"))]
    for path in set(match_paths(patterns)):
        name = posixpath.basename(path)
        if not any(name in (file, file + INDEX_SUFFIX, file + COMMIT_SUFFIX) for file in files):
            delete_files([path])


def _write_manifest(tasks: Mapping[str, InputShard], output: str, config: PackConfig) -> dict[str, Any]:
    """Returns the manifest of the finished shards, after it is written.

    Raises:
        UserError: they hold no pair, or rows whose members lie apart.
    """
    records = [read_commit(path) or {} for path in tasks]
    rejections: collections.Counter[str] = collections.Counter()
    for record in records:
        rejections.update(record["rejections"])
    check_layout(rejections, num_rows=sum(record["num_rows"] for record in records))
    if not any(record["num_records"] for record in records):
        where = next(iter(tasks.values())).path + (f" and {len(tasks) - 1} others" if len(tasks) > 1 else "")
        cure = cure_of(rejections)
        raise UserError(
            f"--input ({where}) holds no usable pair (0, at least 1 is needed): {dict(rejections)}"
            + (f"; {cure}" if cure else "")
        )
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "pairs",
        "shards": [
            {"file": posixpath.basename(path), "num_records": record["num_records"], "sha256": record["sha256"]}
            for path, record in zip(tasks, records, strict=True)
        ],
        "num_classes": 0,
        "rejections": dict(rejections),
        "config": dataclasses.asdict(config),
        "inputs": [{"path": shard.path, "fingerprint": shard.fingerprint} for shard in tasks.values()],
    }
    write_json(posixpath.join(output, MANIFEST_NAME), manifest)
    return manifest
