"""The first job: units of input rows -> annotations. It runs the models; finished units are skipped.

    names of units -> Reshuffle -> read, validate, find mentions, propose candidates, disambiguate, score images, write

One Beam job takes all units that are not finished, and each unit commits itself as it ends: a kill loses the units in
work and no others, on any engine.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.byte_cache import Remembered
from pipeline.config import AnnotateConfig, ReadConfig
from pipeline.engine.annotate_unit import STAGE, UnitAnnotator, key_of
from pipeline.engine.attempts import NOTES_FOLDER
from pipeline.engine.processes import annotate_in_processes
from pipeline.engine.progress import Progress
from pipeline.kb.store import read_manifest
from pipeline.linking.sentences import sentence_encoder_fingerprint
from pipeline.linking.verifier import verifier_fingerprint
from pipeline.linking.weights import weights_of
from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig, is_awaited, num_workers, pipeline_options, set_store_options
from pipeline.schema import UserError
from pipeline.stages.validate import Validate
from pipeline.storage.beam_files import delete_files, list_folder, read_bytes, read_json, write_bytes
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files, sha256_of_file
from pipeline.storage.local_copy import local_copy
from pipeline.storage.unit_commits import UnitCommit, annotation_path, delete_commits, read_commits, read_outcomes
from pipeline.units import AnnotatedUnit, Unit, unit_of_json, unit_to_json

PENDING_FOLDER = "units/pending"
_READING_THREADS = 32
_PARTS_PER_LIST = 1000  # parts of units in a file of what is pending
_CACHE_BYTES = 64 << 20  # of such files that a worker keeps
_PART_BYTES = 1000  # of a part with its paths and a unit of its own: 720 with paths of 60 characters
_CODE = (  # what annotations depend on, beside models, input and config
    "schema.py",
    "jobs/annotate.py",
    "storage/annotation_format.py",
    "images/*.py",
    "byte_cache.py",
    "row_stage.py",
    "units.py",
    "engine/annotate_unit.py",
    "engine/attempts.py",
    "sources/*.py",
    "kb/*.py",  # without kb/build/, which makes a knowledge base
    "tagger/load.py",  # without tagger/train.py
    "tagger/hashed_words.py",
    "tagger/word_use.py",
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


def model_stages(models: Models, config: AnnotateConfig) -> list[RowStage]:
    """Returns the stages that run models, in order. Text comes before pixels: most rows end before an image opens."""
    # Imported here because they import torch, flair and jax, which a run with nothing left to do does not need.
    from pipeline.stages.disambiguate import Disambiguate
    from pipeline.stages.find_mentions import FindMentions
    from pipeline.stages.propose_candidates import ProposeCandidates
    from pipeline.stages.score_images import ScoreImages
    from pipeline.stages.verify_links import VerifyLinks

    stages: list[RowStage] = [
        FindMentions(kb_path=models.kb, ner_model=models.ner_model),
        ProposeCandidates(models.kb, config.propose.num_candidates),
        Disambiguate(models.kb, config.disambiguate),
        ScoreImages(models.encoder, models.kb, score=config.score, config=config.disambiguate),
    ]
    if config.verify.verifier is not None:
        stages.append(VerifyLinks(models.kb, config.verify.verifier, config.verify.verifier_batch_size))
    return stages


def annotation_fingerprint(models: Models, config: AnnotateConfig) -> dict[str, str]:
    """Returns what the annotations of a shard depend on, beside the shard itself.

    Raises:
        UserError: the knowledge base or a model is missing or empty, or the verifier cannot be imported.
    """
    verifier, sentence_encoder = config.verify.verifier, config.disambiguate.sentence_encoder
    return {
        "kb": str(read_manifest(models.kb)["hash"]),
        "ner_model": ner_model_fingerprint(models.ner_model),
        "encoder": encoder_hash(models.encoder),
        "weights": weights_of(config.disambiguate).hash,
        "code": code_fingerprint(package_files(_CODE)),
        "config": config_fingerprint(dataclasses.replace(config, read=ReadConfig())),
        **({} if verifier is None else {"verifier": verifier_fingerprint(verifier)}),
        **({"sentence_encoder": sentence_encoder_fingerprint(sentence_encoder)} if sentence_encoder else {}),
    }


def ner_model_fingerprint(name: str) -> str:
    """Returns the hash of the tagger's file; of a hub name, which has no file here, the name.

    Raises:
        UserError: `name` looks like the path of a file, and there is no such file.
    """
    path = local_copy(name)
    if os.path.isfile(path):
        return sha256_of_file(path)
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


def annotate(
    units: Sequence[Unit],
    output: str,
    *,
    stages: Callable[[], Sequence[RowStage]],
    fingerprint: dict[str, str],
    config: AnnotateConfig,
    runner: RunnerConfig,
    retry_failed: bool = False,
    beam_args: tuple[str, ...] = (),
) -> tuple[AnnotatedUnit, ...]:
    """Returns the annotations of `units`, in their order; those finished before are not made again.

    `stages` makes new model stages, if there is something to do. With `retry_failed` the failed rows of finished units
    are run again, and no other row of them.

    Raises:
        UserError: an input, a model or the disk is at fault, or workers die whatever they work on.
    """
    keys = {unit.name: key_of(unit, fingerprint) for unit in units}
    finished, num_stale = _finished_units(units, keys, output)
    retried = _units_with_failed_rows(finished, output) if retry_failed else {}
    pending = [unit for unit in units if unit.name not in finished or unit.name in retried]
    print(f"annotate: {len(units)} units, {len(units) - len(pending)} finished before", flush=True)
    if num_stale:
        print(
            f"annotate: {num_stale} units were annotated with other inputs, models, settings or another version of "
            "the program; they are annotated again",
            flush=True,
        )
    if pending:
        annotator = UnitAnnotator(
            stages=(Validate(config.validate), *stages()),
            output=output,
            fingerprint=fingerprint,
            config=config,
            run_id=uuid.uuid4().hex,
            retried=retried,
        )
        with Progress(output, {unit.name: keys[unit.name] for unit in pending}, num_before=len(units) - len(pending)):
            workers = num_workers(runner, len(pending))
            if runner.runner == "direct" and workers > 1:
                begin = functools.partial(set_store_options, runner, beam_args)
                annotate_in_processes(pending, annotator, num_workers=workers, begin=begin)
            else:
                _run_job(pending, annotator, runner, beam_args)
        if not is_awaited(runner, beam_args):
            print(f"annotate: the job of {len(pending)} units was built, and is not run by this command", flush=True)
            return ()
        finished, _ = _finished_units(units, keys, output)
        missing = [unit.name for unit in units if unit.name not in finished]
        if missing:
            raise RuntimeError(
                f"the job ended without {len(missing)} of {len(units)} units, {missing[0]} first; run again"
            )
        _delete_notes(finished, output)
    return tuple(finished[unit.name] for unit in units)


def _run_job(
    pending: Sequence[Unit], annotator: UnitAnnotator, runner: RunnerConfig, beam_args: tuple[str, ...]
) -> None:
    """Runs the Beam job. Units are named by a file and a number in it, so that nothing grows with their parts."""
    lists = _write_pending(pending, posixpath.join(annotator.output, PENDING_FOLDER), annotator.run_id)
    with beam.Pipeline(options=pipeline_options(runner, beam_args, num_tasks=len(pending))) as job:
        (
            job
            | "Lists" >> beam.Create(lists)
            | "Names" >> beam.FlatMap(_names_of_list).with_output_types(tuple[str, int])
            # Without it the engine would fuse all units into one worker.
            | "Spread" >> beam.Reshuffle()
            | "Annotate" >> beam.ParDo(_AnnotateDoFn(annotator))
        )
    if is_awaited(runner, beam_args):
        delete_files([path for path, _ in lists])


class _AnnotateDoFn(beam.DoFn):
    """(file, number of a unit in it) -> the annotations of the unit, and its commit."""

    def __init__(self, annotator: UnitAnnotator):
        self._annotator = annotator

    def setup(self) -> None:
        self._annotator.setup()

    def process(self, name: tuple[str, int]) -> None:
        path, number = name
        self._annotator.annotate(_lists[path][number])


def _names_of_list(name: tuple[str, int]) -> Iterator[tuple[str, int]]:
    path, num_units = name
    Metrics.counter(STAGE, "units").inc(num_units)
    return ((path, number) for number in range(num_units))


def _write_pending(units: Sequence[Unit], folder: str, run_id: str) -> list[tuple[str, int]]:
    """Returns (file, number of units) of the files that it writes `units` to."""
    lists: list[list[Unit]] = []
    num_parts = _PARTS_PER_LIST
    for unit in units:
        if num_parts >= _PARTS_PER_LIST:
            lists.append([])
            num_parts = 0
        lists[-1].append(unit)
        num_parts += len(unit.parts)
    written = []
    for number, of_list in enumerate(lists):
        path = posixpath.join(folder, f"{run_id}-{number:06d}.json")
        write_bytes(path, json.dumps([unit_to_json(unit) for unit in of_list]).encode())
        written.append((path, len(of_list)))
    return written


def _read_list(path: str) -> tuple[Unit, ...]:
    return tuple(map(unit_of_json, json.loads(read_bytes(path))))


_lists = Remembered(_read_list, _CACHE_BYTES, lambda _, units: sum(_PART_BYTES * len(unit.parts) for unit in units))


def _finished_units(units: Sequence[Unit], keys: dict[str, str], output: str) -> tuple[dict[str, AnnotatedUnit], int]:
    """Returns those of `units` whose annotations are finished and have the unit's key, and how many have others only.

    Records of their other annotations, of other models, code, config or inputs, are deleted: the annotations themselves
    are about to be replaced.
    """
    commits = read_commits(output)
    finished = {}
    stale: list[UnitCommit] = []
    num_stale = 0
    for unit in units:
        current = [commit for commit in commits.get(unit.name, ()) if commit.key == keys[unit.name]]
        if len(current) != 1:  # two attempts that did not write the same bytes: which of them are there is not known
            stale += current
        others = [commit for commit in commits.get(unit.name, ()) if commit.key != keys[unit.name]]
        stale += others
        num_stale += bool(others) and not current
        if len(current) == 1:
            (commit,) = current
            finished[unit.name] = AnnotatedUnit(
                unit=unit,
                path=annotation_path(output, unit.name),
                num_rows=commit.num_rows,
                key=commit.key + commit.sha256,  # failed rows may have been run again
                sha256=commit.sha256,
            )
    delete_commits(output, stale)
    return finished, num_stale


def _units_with_failed_rows(finished: Mapping[str, AnnotatedUnit], output: str) -> dict[str, UnitCommit]:
    """Returns the commits of the units of which rows failed, by name; it reads every commit.

    So does a commit of which a kill left a part: its name makes the annotations count, and only they know its rows.
    """
    current = {(unit.unit.name, unit.sha256) for unit in finished.values()}
    commits = [
        commit
        for of_unit in read_commits(output).values()
        for commit in of_unit
        if (commit.unit, commit.sha256) in current
    ]
    with concurrent.futures.ThreadPoolExecutor(_READING_THREADS) as pool:  # pragma: no mutate: any number will do
        outcomes = pool.map(functools.partial(read_outcomes, output), commits)
    of_commits = zip(commits, outcomes, strict=True)  # pragma: no mutate: there is one of each
    return {
        commit.unit: commit
        for commit, of_unit in of_commits
        if any(end.startswith("failed/") for end in of_unit) or sum(of_unit.values()) != commit.num_rows
    }


def _delete_notes(finished: dict[str, AnnotatedUnit], output: str) -> None:
    """Deletes what killed attempts left beside finished units."""
    folder = posixpath.join(output, NOTES_FOLDER)
    delete_files([posixpath.join(folder, file) for file in list_folder(folder) if file.rsplit(".", 2)[0] in finished])
    pending = posixpath.join(output, PENDING_FOLDER)
    delete_files([posixpath.join(pending, file) for file in list_folder(pending)])
