"""The first Beam job: units of input rows -> annotations. It runs the models; finished units are skipped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from pipeline.config import AnnotateConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.verifier import verifier_fingerprint
from pipeline.linking.weights import read_weights
from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig, job_by_job, pipeline_options
from pipeline.schema import UserError
from pipeline.sources.read import ReadShards
from pipeline.stages.validate import Validate
from pipeline.storage.annotation_format import (
    ANNOTATION_SCHEMA,
    check_one_outcome_per_row,
    record_of_rejection,
    record_of_row,
    write_parquet,
)
from pipeline.storage.beam_files import read_json
from pipeline.storage.commits import commit, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files, sha256_of_file
from pipeline.units import AnnotatedUnit, Unit

ANNOTATIONS_FOLDER = "annotations"
_CODE = (  # what annotations depend on, beside models, input and config
    "schema.py",
    "jobs/annotate.py",
    "storage/annotation_format.py",
    "images/*.py",
    "row_stage.py",
    "units.py",
    "sources/*.py",
    "kb/*.py",  # without kb/build/, which makes a knowledge base
    "tagger/load.py",  # without tagger/train.py
    "tagger/hashed_words.py",
    "linking/*.py",
    "stages/validate.py",
    "stages/find_mentions.py",
    "stages/propose_candidates.py",
    "stages/disambiguate.py",
    "stages/score_images.py",
    "stages/verify_links.py",
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


def model_stages(models: Models, config: AnnotateConfig) -> list[tuple[str, RowStage]]:
    """Returns the stages that run models, in order. Text comes before pixels: most rows end before an image opens."""
    # Imported here because they import torch, flair and jax, which a run with nothing left to do does not need.
    from pipeline.stages.disambiguate import Disambiguate
    from pipeline.stages.find_mentions import FindMentions
    from pipeline.stages.propose_candidates import ProposeCandidates
    from pipeline.stages.score_images import ScoreImages
    from pipeline.stages.verify_links import VerifyLinks

    stages: list[tuple[str, RowStage]] = [
        ("FindMentions", FindMentions(kb_path=models.kb, ner_model=models.ner_model)),
        ("ProposeCandidates", ProposeCandidates(models.kb, config.propose.num_candidates)),
        ("Disambiguate", Disambiguate(models.kb, config.disambiguate)),
        (
            "ScoreImages",
            ScoreImages(
                encoder_path=models.encoder,
                kb_path=models.kb,
                batch_size=config.score.batch_size,
                config=config.disambiguate,
            ),
        ),
    ]
    if config.verify.verifier is not None:
        stages.append(
            ("VerifyLinks", VerifyLinks(models.kb, config.verify.verifier, config.verify.verifier_batch_size))
        )
    return stages


def annotation_fingerprint(models: Models, config: AnnotateConfig) -> dict[str, str]:
    """Returns what the annotations of a shard depend on, beside the shard itself.

    Raises:
        UserError: the knowledge base or the encoder is missing or empty, or the verifier cannot be imported.
    """
    verifier = config.verify.verifier
    return {
        "kb": KnowledgeBase.open(models.kb).hash,
        "ner_model": ner_model_fingerprint(models.ner_model),
        "encoder": encoder_hash(models.encoder),
        "weights": read_weights(config.disambiguate.weights).hash,
        "code": code_fingerprint(package_files(_CODE)),
        "config": config_fingerprint(config),
        **({} if verifier is None else {"verifier": verifier_fingerprint(verifier)}),
    }


def ner_model_fingerprint(name: str) -> str:
    """Returns the hash of the tagger's file; of a hub name, which has no file here, the name.

    Raises:
        UserError: `name` looks like the path of a file, and there is no such file.
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
    """Returns the hash in the record of the encoder at `path`.

    Raises:
        UserError: there is no encoder.
    """
    record = read_json(posixpath.join(path, "encoder.json"))
    if record is None or "hash" not in record:
        raise UserError(f"--encoder {path} holds no encoder (encoder.json is missing); train or import one first")
    return str(record["hash"])


def annotation_path(output: str, name: str) -> str:
    """Returns where the annotations of the unit called `name` lie in the output folder."""
    return posixpath.join(output, ANNOTATIONS_FOLDER, name + ".parquet")


def annotate(
    units: Sequence[Unit],
    output: str,
    *,
    stages: Callable[[], Sequence[tuple[str, RowStage]]],
    fingerprint: dict[str, str],
    config: AnnotateConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> tuple[AnnotatedUnit, ...]:
    """Returns the annotations of `units`, in their order; those finished before are not made again.

    `stages` makes new model stages for each Beam job. With one worker on this machine the models stay loaded from one
    job to the next; several workers, and those of other engines, load them for each job.
    """
    pending = [unit for unit in units if _finished(unit, output, fingerprint) is None]
    print(f"annotate: {len(units)} shards, {len(units) - len(pending)} finished before", flush=True)
    for units_of_job in job_by_job("annotate", pending, runner):
        by_path = {unit.parts[0].path: unit for unit in units_of_job}
        with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
            (
                job
                | "Units" >> beam.Create(list(by_path))
                # Without it the engine would fuse all units into one worker.
                | "Spread" >> beam.Reshuffle()
                | "Annotate" >> AnnotateShards(stages=stages(), config=config)
                | "Write" >> beam.ParDo(_WriteAnnotations(units=by_path, output=output, fingerprint=fingerprint))
            )
    annotated = [(unit, _finished(unit, output, fingerprint)) for unit in units]
    missing = [unit.name for unit, finished in annotated if finished is None]
    if missing:
        raise RuntimeError(f"the job ended without {len(missing)} of {len(units)} units, {missing[0]} first; run again")
    return tuple(finished for _, finished in annotated if finished is not None)


def _finished(unit: Unit, output: str, fingerprint: dict[str, str]) -> AnnotatedUnit | None:
    """Returns the annotations of `unit` if they are finished, and were made from these models, code and config."""
    path = annotation_path(output, unit.name)
    record = read_commit(path)
    key = _key(unit, fingerprint)
    if record is None or record.get("key") != key:
        return None
    return AnnotatedUnit(unit=unit, path=path, num_rows=record["num_rows"], key=key, size_bytes=record["size_bytes"])


def _key(unit: Unit, fingerprint: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([unit.fingerprint, fingerprint], sort_keys=True).encode()).hexdigest()


class AnnotateShards(beam.PTransform[PCollection[str], PCollection[tuple[str, dict[str, Any]]]]):
    """PCollection of shard paths -> PCollection of (path, {"records": ..., "num_rows": ...}), one per shard."""

    def __init__(self, *, stages: Sequence[tuple[str, RowStage]], config: AnnotateConfig):
        super().__init__()
        self._stages = stages
        self._config = config

    def expand(self, paths: PCollection[str]) -> Any:
        read = paths | "Read" >> ReadShards(
            rows_per_batch=self._config.read.rows_per_batch, members=self._config.members
        )
        rejected, batches = [read.rejected], read.kept
        for name, stage in [("Validate", Validate(self._config.validate)), *self._stages]:
            outputs = batches | name >> stage
            rejected.append(outputs.rejected)
            batches = outputs.kept
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

    def __init__(self, *, units: dict[str, Unit], output: str, fingerprint: dict[str, str]):
        self._units = units
        self._output = output
        self._fingerprint = fingerprint

    def process(self, element: tuple[str, dict[str, Any]]) -> None:
        path, grouped = element
        unit = self._units[path]
        (num_rows,) = grouped["num_rows"]
        records = sorted(grouped["records"], key=lambda record: record["row"])
        check_one_outcome_per_row(records, num_rows=num_rows, shard=path)
        file = unit.file_of(path)
        annotations = annotation_path(self._output, unit.name)
        uncommit(annotations)
        # With the file's name, the bytes do not depend on the folder of the input.
        write_parquet(annotations, [{**record, "shard": file} for record in records], ANNOTATION_SCHEMA)
        (part,) = unit.parts
        commit(
            annotations,
            {
                "input": {"path": path, "size_bytes": part.size_bytes, "updated_sec": part.updated_sec},
                "fingerprint": {"input": part.fingerprint, **self._fingerprint},
                "key": _key(unit, self._fingerprint),
                "num_rows": num_rows,
            },
        )
