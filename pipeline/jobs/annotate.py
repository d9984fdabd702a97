"""The first Beam job: input shards -> annotations. It runs the models; finished shards are never run again."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import time
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam

from pipeline.config import AnnotateConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.runners import RunnerConfig, pipeline_options, print_progress, shards_per_job
from pipeline.schema import UserError
from pipeline.sources.inputs import InputShard
from pipeline.sources.webdataset import ReadWebDataset
from pipeline.stages.validate import Validate
from pipeline.storage.annotation_format import (
    ANNOTATION_SCHEMA,
    check_one_outcome_a_row,
    record_of_rejection,
    record_of_row,
    write_parquet,
)
from pipeline.storage.beam_files import read_json
from pipeline.storage.commits import commit, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files, sha256_of_file

ANNOTATIONS_FOLDER = "annotations"
_CODE = (  # what annotations depend on, beside models, input and config
    "schema.py",
    "jobs/annotate.py",
    "storage/annotation_format.py",
    "images/*.py",
    "sources/*.py",
    "kb/*.py",  # what a knowledge base is made by lies in kb/build/
    "tagger/load.py",
    "stages/validate.py",
    "stages/find_mentions.py",
    "stages/propose_candidates.py",
    "stages/disambiguate.py",
    "stages/score_images.py",
    # Not the encoder's writer: it does not change what annotating reads.
    "../trainer/encoder/__init__.py",
    "../trainer/encoder/format.py",
    "../trainer/encoder/preprocessing.py",
    "../trainer/encoder/read.py",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Paths of what the stages load."""

    kb: str
    ner_model: str
    encoder: str


def model_stages(models: Models, config: AnnotateConfig) -> list[tuple[str, beam.PTransform]]:
    """Returns the stages that run models, in order. Text comes before pixels: most rows end before an image opens."""
    # Here, not above: these modules bring torch, flair and jax, which a run with nothing left to do can spare.
    from pipeline.stages.disambiguate import Disambiguate
    from pipeline.stages.find_mentions import FindMentions
    from pipeline.stages.propose_candidates import ProposeCandidates
    from pipeline.stages.score_images import ScoreImages

    return [
        ("FindMentions", FindMentions(kb_path=models.kb, ner_model=models.ner_model)),
        ("ProposeCandidates", ProposeCandidates(models.kb, config.propose.num_candidates)),
        ("Disambiguate", Disambiguate(models.kb, config.disambiguate)),
        (
            "ScoreImages",
            ScoreImages(encoder_path=models.encoder, kb_path=models.kb, batch_size=config.score.batch_size),
        ),
    ]


def annotation_fingerprint(models: Models, config: AnnotateConfig) -> dict[str, str]:
    """Returns what the annotations of a shard depend on, beside the shard itself.

    Raises:
        UserError: the knowledge base or the encoder is missing or empty.
    """
    return {
        "kb": KnowledgeBase.open(models.kb).hash,
        "ner_model": ner_model_fingerprint(models.ner_model),
        "encoder": encoder_hash(models.encoder),
        "code": code_fingerprint(package_files(_CODE)),
        "config": config_fingerprint(config),
    }


def ner_model_fingerprint(name: str) -> str:
    """Returns the hash of the tagger's file; of a hub name, which has no file here, the name.

    Raises:
        UserError: `name` looks like a file and is none.
    """
    if os.path.isfile(name):
        return sha256_of_file(name)
    if name.endswith(".pt") or name.startswith((".", os.sep)):
        raise UserError(
            f"--ner-model {name} is missing; write one with: python -m pipeline.tagger.train --output "
            f"{os.path.dirname(name) or '.'}"
        )
    return name


def encoder_hash(path: str) -> str:
    """Returns the hash that the encoder at `path` states.

    Raises:
        UserError: there is no encoder.
    """
    record = read_json(posixpath.join(path, "encoder.json"))
    if record is None or "hash" not in record:
        raise UserError(f"--encoder {path} holds no encoder (encoder.json is missing); train or import one first")
    return record["hash"]


def annotation_path(output: str, name: str) -> str:
    """Returns where the annotations of the input shard called `name` lie in the output folder."""
    return posixpath.join(output, ANNOTATIONS_FOLDER, name + ".parquet")


def pending_shards(shards: Sequence[InputShard], output: str, fingerprint: dict[str, str]) -> list[InputShard]:
    """Returns the shards without annotations made of the same input, models, code and config."""
    pending = []
    for shard in shards:
        record = read_commit(annotation_path(output, shard.name))
        if record is None or record.get("fingerprint") != {"input": shard.fingerprint, **fingerprint}:
            pending.append(shard)
    return pending


def annotate(
    shards: Sequence[InputShard],
    output: str,
    *,
    stages: Callable[[], Sequence[tuple[str, beam.PTransform]]],
    fingerprint: dict[str, str],
    config: AnnotateConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> int:
    """Returns how many shards it annotated; those finished before are skipped.

    `stages` makes the model stages anew for each Beam job. The shards go through Beam a few at a time, so that a kill
    loses those in flight and no others, on any engine. With one worker on this machine the models stay loaded from job
    to job; several workers, and those of other engines, load them for each.
    """
    pending = pending_shards(shards, output, fingerprint)
    print(f"annotate: {len(shards)} shards, {len(shards) - len(pending)} finished before", flush=True)
    step = shards_per_job(runner)
    start_sec = time.monotonic()
    for first in range(0, len(pending), step):
        wave = pending[first : first + step]
        with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
            (
                job
                | "Shards" >> beam.Create([shard.path for shard in wave])
                # Without it the engine would fuse all shards into one worker.
                | "Spread" >> beam.Reshuffle()
                | "Annotate" >> AnnotateShards(stages=stages(), config=config)
                | "Write"
                >> beam.ParDo(
                    _WriteAnnotations(
                        shards={shard.path: shard for shard in wave}, output=output, fingerprint=fingerprint
                    )
                )
            )
        print_progress("annotate", first + len(wave), len(pending), start_sec)
    return len(pending)


class AnnotateShards(beam.PTransform):
    """PCollection of shard paths -> PCollection of (path, {"records": ..., "num_rows": ...}), one element a shard."""

    def __init__(self, *, stages: Sequence[tuple[str, beam.PTransform]], config: AnnotateConfig):
        super().__init__()
        self._stages = stages
        self._config = config

    def expand(self, paths):  # type: ignore[no-untyped-def]
        read = paths | "Read" >> ReadWebDataset(rows_per_batch=self._config.read.rows_per_batch)
        rejected, batches = [read.rejected], read.kept
        for name, stage in [("Validate", Validate(self._config.validate)), *self._stages]:
            result = batches | name >> stage
            rejected.append(result["rejected"] if isinstance(result, dict) else result.rejected)
            batches = result["kept"] if isinstance(result, dict) else result.kept
        # From here on rows are records without pixels: only those cross the shuffle.
        kept = batches | "KeptRecords" >> beam.FlatMap(
            lambda batch: [(row.pair.shard, record_of_row(row)) for row in batch.rows]
        )
        lost = [
            part | f"RejectedRecords{i}" >> beam.Map(lambda item: (item.shard, record_of_rejection(item)))
            for i, part in enumerate(rejected)
        ]
        records = [kept, *lost] | "Records" >> beam.Flatten()
        return {"records": records, "num_rows": read.num_rows} | "ByShard" >> beam.CoGroupByKey()


class _WriteAnnotations(beam.DoFn):
    """(path, records) -> the annotation file and, after it, its commit record."""

    def __init__(self, *, shards: dict[str, InputShard], output: str, fingerprint: dict[str, str]):
        self._shards = shards
        self._output = output
        self._fingerprint = fingerprint

    def process(self, element: tuple[str, dict[str, Any]]) -> None:
        path, grouped = element
        shard = self._shards[path]
        (num_rows,) = grouped["num_rows"]
        records = sorted(grouped["records"], key=lambda record: record["row"])
        check_one_outcome_a_row(records, num_rows=num_rows, shard=path)
        name = posixpath.basename(path)
        annotations = annotation_path(self._output, shard.name)
        uncommit(annotations)
        # The base name is the same wherever the input lies, and so are the bytes.
        write_parquet(annotations, [{**record, "shard": name} for record in records], ANNOTATION_SCHEMA)
        made_of = {"input": shard.fingerprint, **self._fingerprint}
        commit(annotations, {"input": shard.stamp, "num_rows": num_rows, "fingerprint": made_of})
