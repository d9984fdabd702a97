"""`python -m pipeline.pack_pairs`: image-text pairs -> a set of raw pairs, without labels, to train an encoder on."""

from __future__ import annotations

import collections
import dataclasses
import functools
import posixpath
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import tyro

from pipeline.config import ValidateConfig, check_validate_config
from pipeline.images.decode import decode_image
from pipeline.jobs.assemble import shard_file
from pipeline.runners import RunnerConfig, pipeline_options, print_progress, shards_per_job, worker_error
from pipeline.schema import LabelledImage, Rejection, Row, UserError
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME, ShardWriter
from pipeline.sources.inputs import InputShard, match_inputs
from pipeline.sources.webdataset import read_shard
from pipeline.stages.validate import validate_row
from pipeline.storage.beam_files import delete_matching, write_json
from pipeline.storage.commits import commit, prepare_output, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files

_DATASET_NAME = "pairs"
_CODE = (  # what a packed shard depends on, beside input and config
    "schema.py",
    "pack_pairs.py",
    "images/*.py",
    "shard_format.py",
    "sources/*.py",
    "stages/validate.py",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackPairsConfig:
    """Packs image-text pairs into a set that the trainer reads."""

    input: str = "runs/demo/corpus/pairs-*.tar"
    """Path or glob of WebDataset tars, in quotes."""
    output: str = "runs/demo/pairs"
    """Folder for the set."""
    validate: ValidateConfig = ValidateConfig()
    runner: RunnerConfig = RunnerConfig()


def pack_pairs(config: PackPairsConfig, beam_args: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the manifest of the set at `config.output`; shards finished before are skipped.

    Raises:
        UserError: an input, a setting or the disk stands in the way, or no pair is usable.
    """
    pipeline_options(config.runner, beam_args)
    check_validate_config(config.validate)
    shards = match_inputs(config.input)
    prepare_output(config.output, needed_bytes=int(1.1 * sum(shard.size_bytes for shard in shards)))
    # A set without its manifest is unfinished.
    delete_matching([posixpath.join(config.output, MANIFEST_NAME)])
    tasks = [
        (shard, posixpath.join(config.output, shard_file(_DATASET_NAME, index, len(shards))))
        for index, shard in enumerate(shards)
    ]
    made_of = {"config": config_fingerprint(config.validate), "code": code_fingerprint(package_files(_CODE))}
    pending = []
    for shard, path in tasks:
        record = read_commit(path)
        if record is None or record.get("fingerprint") != {"input": shard.fingerprint, **made_of}:
            pending.append((shard, path))
    print(f"pack_pairs: {len(shards)} shards, {len(shards) - len(pending)} finished before", flush=True)
    step = shards_per_job(config.runner)
    start_sec = time.monotonic()
    for first in range(0, len(pending), step):
        with beam.Pipeline(options=pipeline_options(config.runner, beam_args)) as job:
            (
                job
                | "Shards" >> beam.Create(pending[first : first + step])
                | "Spread" >> beam.Reshuffle()
                | "Pack" >> beam.MapTuple(functools.partial(pack_shard, config=config.validate, made_of=made_of))
            )
        print_progress("pack_pairs", min(first + step, len(pending)), len(pending), start_sec)
    records = [read_commit(path) or {} for _, path in tasks]
    rejections: collections.Counter[str] = collections.Counter()
    for record in records:
        rejections.update(record["rejections"])
    if not any(record["num_records"] for record in records):
        raise UserError(f"--input {config.input} holds no usable pair (0, at least 1 is needed): {dict(rejections)}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": "pairs",
        "shards": [
            {"file": posixpath.basename(path), "num_records": record["num_records"], "sha256": record["sha256"]}
            for (_, path), record in zip(tasks, records, strict=True)
        ],
        "num_classes": 0,
        "rejections": dict(rejections),
        "config": dataclasses.asdict(config.validate),
        "inputs": [{"path": shard.path, "fingerprint": shard.fingerprint} for shard in shards],
    }
    write_json(posixpath.join(config.output, MANIFEST_NAME), manifest)
    return manifest


def pack_shard(shard: InputShard, path: str, *, config: ValidateConfig, made_of: Mapping[str, str]) -> None:
    """Writes the usable pairs of `shard` to `path`, in order, and the commit record after them.

    `made_of` goes into the record: the fingerprints of all that the file depends on, beside the input.
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
            "fingerprint": {"input": shard.fingerprint, **made_of},
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what follows `--` goes to Beam."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    beam_args: tuple[str, ...] = ()
    if "--" in arguments:
        split = arguments.index("--")
        arguments, beam_args = arguments[:split], tuple(arguments[split + 1 :])
    config = tyro.cli(tyro.conf.OmitArgPrefixes[PackPairsConfig], args=arguments, prog="python -m pipeline.pack_pairs")
    try:
        manifest = pack_pairs(config, beam_args)
    except Exception as error:
        mendable = worker_error(error, config.output)
        if mendable is None:
            raise
        print(f"error: {mendable}", file=sys.stderr)
        sys.exit(2)
    count = sum(shard["num_records"] for shard in manifest["shards"])
    print(f"{config.output}: {count} pairs; rejected: {manifest['rejections'] or 'none'}")


if __name__ == "__main__":
    main()
