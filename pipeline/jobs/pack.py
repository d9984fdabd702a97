"""The job behind `pack_pairs`: input shards -> shards of raw pairs. It runs no model; finished shards are skipped."""

from __future__ import annotations

import collections
import dataclasses
import functools
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam

from pipeline.config import ValidateConfig
from pipeline.images.decode import decode_image
from pipeline.runners import RunnerConfig, job_by_job, pipeline_options
from pipeline.schema import LabelledImage, Rejection, Row, UserError
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME, ShardWriter, shard_file
from pipeline.sources.inputs import InputShard
from pipeline.sources.read import read_shard
from pipeline.stages.validate import validate_row
from pipeline.storage.beam_files import delete_matching, write_json
from pipeline.storage.commits import commit, is_current, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files

_DATASET_NAME = "pairs"
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
    config: ValidateConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the manifest of the set of raw pairs at `output`; shards finished before are skipped.

    Raises:
        UserError: no pair is usable.
    """
    # A set without its manifest is unfinished.
    delete_matching([posixpath.join(output, MANIFEST_NAME)])
    fingerprint = {"config": config_fingerprint(config), "code": code_fingerprint(package_files(_CODE))}
    tasks = [(shard, posixpath.join(output, shard_file(_DATASET_NAME, index))) for index, shard in enumerate(shards)]
    pending = [
        (shard, path) for shard, path in tasks if not is_current(path, {"input": shard.fingerprint, **fingerprint})
    ]
    print(f"pack_pairs: {len(shards)} shards, {len(shards) - len(pending)} finished before", flush=True)
    for tasks_of_job in job_by_job("pack_pairs", pending, runner):
        with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
            (
                job
                | "Shards" >> beam.Create(tasks_of_job)
                | "Spread" >> beam.Reshuffle()
                | "Pack" >> beam.MapTuple(functools.partial(pack_shard, config=config, fingerprint=fingerprint))
            )
    return _write_manifest(tasks, output, config)


def pack_shard(shard: InputShard, path: str, *, config: ValidateConfig, fingerprint: Mapping[str, str]) -> None:
    """Writes the usable pairs of `shard` to `path`, in order, and the commit record after them.

    The record holds `fingerprint`: hashes of all that the file depends on, beside the input.
    """
    uncommit(path)
    rejections: collections.Counter[str] = collections.Counter()
    num_records = 0
    with ShardWriter(path) as writer:
        for pair in read_shard(shard.path):
            row = pair if isinstance(pair, Rejection) else validate_row(Row(pair=pair), config)
            if isinstance(row, Rejection):
                rejections[row.reason] += 1
                continue
            try:
                decode_image(row.pair.image)  # the trainer reads every picture, and has no ledger
            except ValueError:
                rejections["broken_image"] += 1
                continue
            writer.write(
                LabelledImage(
                    image=row.pair.image,
                    image_id=row.pair.image_id,
                    text=row.pair.text,
                    width_px=row.width_px,
                    height_px=row.height_px,
                )
            )
            num_records += 1
    commit(
        path,
        {
            "num_records": num_records,
            "rejections": dict(rejections),
            "fingerprint": {"input": shard.fingerprint, **fingerprint},
        },
    )


def _write_manifest(tasks: Sequence[tuple[InputShard, str]], output: str, config: ValidateConfig) -> dict[str, Any]:
    """Returns the manifest of the finished shards, after it is written.

    Raises:
        UserError: they hold no pair.
    """
    records = [read_commit(path) or {} for _, path in tasks]
    rejections: collections.Counter[str] = collections.Counter()
    for record in records:
        rejections.update(record["rejections"])
    if not any(record["num_records"] for record in records):
        where = tasks[0][0].path + (f" and {len(tasks) - 1} others" if len(tasks) > 1 else "")
        raise UserError(f"--input ({where}) holds no usable pair (0, at least 1 is needed): {dict(rejections)}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "pairs",
        "shards": [
            {"file": posixpath.basename(path), "num_records": record["num_records"], "sha256": record["sha256"]}
            for (_, path), record in zip(tasks, records, strict=True)
        ],
        "num_classes": 0,
        "rejections": dict(rejections),
        "config": dataclasses.asdict(config),
        "inputs": [{"path": shard.path, "fingerprint": shard.fingerprint} for shard, _ in tasks],
    }
    write_json(posixpath.join(output, MANIFEST_NAME), manifest)
    return manifest
