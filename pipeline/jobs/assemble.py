"""The second Beam job: annotations -> an Image-to-Entities set. It runs no model: thresholds are quick to change.

It is one Beam job. After a kill it starts over: what it had written is deleted first.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import posixpath
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms import combiners

from pipeline.config import AnnotateConfig, AssembleConfig
from pipeline.linking.weights import read_weights
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import EVIDENCE, UserError, VocabularyEntry
from pipeline.shard_format import (
    FORMAT_VERSION,
    INDEX_SUFFIX,
    MANIFEST_NAME,
    VOCABULARY_NAME,
    shard_file,
    shard_pattern,
)
from pipeline.sources.layout import CURES, check_layout, cure_of
from pipeline.stages.build_vocabulary import BuildVocabulary
from pipeline.stages.deduplicate import Deduplicate
from pipeline.stages.select_labels import SelectLabels, labels_of_record
from pipeline.stages.write_shards import ShardTask, WriteShards
from pipeline.storage.annotation_format import EntityLabel, read_parquet
from pipeline.storage.beam_files import delete_matching, match_paths, read_bytes, read_json, write_bytes, write_json
from pipeline.storage.commits import read_commit
from pipeline.storage.fingerprints import code_fingerprint, package_files
from pipeline.storage.funnel import ENTITY_FILTER_NAME, FUNNEL_NAME, make_funnel, write_entity_filter
from pipeline.storage.tfds_metadata import METADATA_NAMES, write_tfds_metadata
from pipeline.units import AnnotatedUnit

DATASET_NAME = "i2e"
_SAME_ID_SHARE = 0.05  # of all rows; more are a mistake in naming
_LAYOUT_SHARE = 0.5  # of all rows; more are a mistake in how the tar is packed
_CODE = (  # what the set depends on, beside annotations, input and config
    "schema.py",
    "jobs/assemble.py",
    "storage/annotation_format.py",
    "storage/funnel.py",
    "storage/tfds_metadata.py",
    "shard_format.py",
    "row_stage.py",
    "sources/*.py",
    "stages/select_labels.py",
    "stages/deduplicate.py",
    "stages/build_vocabulary.py",
    "stages/write_shards.py",
)


def assemble(
    units: Sequence[AnnotatedUnit],
    output: str,
    *,
    kb_path: str,
    hashes: Mapping[str, str],
    config: AssembleConfig,
    annotate_config: AnnotateConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the manifest of the set that it writes to `output` from the annotations of `units`.

    Skipped when the set is whole and its annotations, code and config are unchanged.

    Raises:
        UserError: too many rows failed, or no image kept a label. The ledger is written by then.
    """
    tasks = _tasks(units, output)
    inputs = _inputs_of_set(units, hashes=hashes, config=config, annotate_config=annotate_config)
    finished = _finished_set(tasks, output, inputs)
    if finished is not None:
        print(f"assemble: {len(units)} shards, already assembled; nothing to do", flush=True)
        return finished
    # A set without its manifest is unfinished: old files must not pass for those that are being written.
    delete_matching([posixpath.join(output, MANIFEST_NAME)])
    # Only these: the folder may also hold inputs whose names begin alike.
    outputs = (shard_pattern(DATASET_NAME), "ledger/*", "provenance/*", *METADATA_NAMES, VOCABULARY_NAME)
    delete_matching([posixpath.join(output, pattern) for pattern in outputs])
    if "://" not in output:
        for folder in ("ledger", "provenance"):
            os.makedirs(os.path.join(output, folder), exist_ok=True)
    print(f"assemble: {len(units)} shards", flush=True)
    with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
        task_list = job | "Tasks" >> beam.Create(tasks)
        labels = task_list | "ReadLabels" >> ReadLabels()
        selected = labels | "SelectLabels" >> SelectLabels(config.select)
        unique = selected.kept | "Deduplicate" >> Deduplicate()
        classes = unique.kept | "BuildVocabulary" >> BuildVocabulary(config.vocabulary, kb_path=kb_path)
        rejections = (selected.rejected, unique.rejected, classes.rejected) | "Rejections" >> beam.Flatten()
        classes.entries | "WriteVocabulary" >> beam.Map(_write_vocabulary, posixpath.join(output, VOCABULARY_NAME))
        (
            {"kept": classes.kept, "rejected": rejections}
            | "CountByEntity" >> CountByEntity()
            | "WriteCounts" >> beam.Map(write_entity_filter, posixpath.join(output, ENTITY_FILTER_NAME))
        )
        (
            {"tasks": task_list, "labels": classes.kept, "rejections": rejections}
            | "WriteShards" >> WriteShards(threshold=selected.threshold, hashes=hashes, members=annotate_config.members)
        )
    return _finish(tasks, output, inputs=inputs, config=config, to_explain=_to_explain(kb_path, annotate_config))


class ReadLabels(beam.PTransform[PCollection[tuple[str, ShardTask]], PCollection[EntityLabel]]):
    """PCollection of (name, ShardTask) -> PCollection of the EntityLabels in their annotations."""

    def expand(self, tasks: PCollection[tuple[str, ShardTask]]) -> Any:
        return (
            tasks
            | "AnnotationPaths" >> beam.MapTuple(lambda _, task: task.annotation_path)
            | "Spread" >> beam.Reshuffle()
            | "ReadAnnotations" >> beam.FlatMap(read_parquet)
            | "Labels" >> beam.FlatMap(labels_of_record)
        )


class CountByEntity(beam.PTransform[dict[str, PCollection[Any]], PCollection[Any]]):
    """Dict of `kept` (EntityLabel, class id), `rejected` LabelRejections -> one list of ((entity id, end), count)."""

    def expand(self, labels: Any) -> Any:
        ends = (
            labels["kept"] | "KeptEnds" >> beam.Map(lambda item: (item[0].entity_id, "kept")),
            labels["rejected"] | "RejectedEnds" >> beam.Map(lambda item: (item.label.entity_id, item.reason)),
        )
        return (
            ends | "Ends" >> beam.Flatten() | "Count" >> combiners.Count.PerElement() | "ToList" >> combiners.ToList()
        )


def _tasks(units: Sequence[AnnotatedUnit], output: str) -> list[tuple[str, ShardTask]]:
    return [
        (
            annotated.unit.parts[0].file,
            ShardTask(
                input_path=annotated.unit.parts[0].path,
                annotation_path=annotated.path,
                shard_path=posixpath.join(output, shard_file(DATASET_NAME, index)),
                ledger_path=posixpath.join(output, "ledger", annotated.unit.name + ".parquet"),
                provenance_path=posixpath.join(output, "provenance", annotated.unit.name + ".parquet"),
            ),
        )
        for index, annotated in enumerate(units)
    ]


def _inputs_of_set(
    units: Sequence[AnnotatedUnit],
    *,
    hashes: Mapping[str, str],
    config: AssembleConfig,
    annotate_config: AnnotateConfig,
) -> dict[str, Any]:
    """Returns the part of the manifest that is known before the set is made: all that it depends on."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": "i2e",
        "config": {"annotate": dataclasses.asdict(annotate_config), "assemble": dataclasses.asdict(config)},
        "hashes": {**hashes, "assemble_code": code_fingerprint(package_files(_CODE))},
        "inputs": [
            {"path": part.path, "fingerprint": part.fingerprint} for annotated in units for part in annotated.unit.parts
        ],
    }


def _to_explain(kb_path: str, config: AnnotateConfig) -> dict[str, Any]:
    """Returns what explains a set to people: where names are looked up, and the linker's weights.

    Both count by their hashes, which are among the inputs.
    """
    weights = read_weights(config.disambiguate.weights)
    by_name = dict(zip(EVIDENCE, weights.of_evidence, strict=True))
    return {"kb": kb_path, "linker": {"bias": weights.bias, "weights": by_name}}


def _finished_set(
    tasks: Sequence[tuple[str, ShardTask]], output: str, inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the manifest in `output` if it has the same `inputs` and no file of the set is missing; else None."""
    manifest = read_json(posixpath.join(output, MANIFEST_NAME))
    if manifest is None or any(manifest.get(name) != value for name, value in inputs.items()):
        return None
    needed = {
        posixpath.join(output, name) for name in (*METADATA_NAMES, VOCABULARY_NAME, FUNNEL_NAME, ENTITY_FILTER_NAME)
    }
    for _, task in tasks:
        needed |= {task.shard_path + INDEX_SUFFIX, task.ledger_path, task.provenance_path}
    existing = match_paths([posixpath.join(output, pattern) for pattern in ("*", "ledger/*", "provenance/*")])
    commits = [read_commit(task.shard_path) for _, task in tasks]
    hashes = [record["sha256"] if record else None for record in commits]
    is_whole = needed.issubset(existing) and hashes == [shard["sha256"] for shard in manifest["shards"]]
    return manifest if is_whole else None


def _finish(
    tasks: Sequence[tuple[str, ShardTask]],
    output: str,
    *,
    inputs: Mapping[str, Any],
    config: AssembleConfig,
    to_explain: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the manifest, after the checks on the whole set; it is written last."""
    commits = [read_commit(task.shard_path) for _, task in tasks]
    missing = [task.shard_path for (_, task), record in zip(tasks, commits, strict=True) if record is None]
    if missing:
        raise RuntimeError(
            f"the job ended without {len(missing)} of {len(tasks)} shards, {missing[0]} first; run again"
        )
    records = [record for record in commits if record is not None]
    funnel = make_funnel(records, read_parquet(posixpath.join(output, ENTITY_FILTER_NAME)))
    write_json(posixpath.join(output, FUNNEL_NAME), funnel)
    _check_outcomes(funnel, output, config)

    with_names = [
        {"file": posixpath.basename(task.shard_path), "num_records": record["num_records"], "sha256": record["sha256"]}
        for (_, task), record in zip(tasks, records, strict=True)
    ]
    write_tfds_metadata(output, DATASET_NAME, records)
    num_classes = read_bytes(posixpath.join(output, VOCABULARY_NAME)).count(b"\n")
    manifest = {
        **inputs,
        **to_explain,
        "shards": with_names,
        "num_classes": num_classes,
        "num_rows": funnel["rows"]["read"],
        "num_labels": sum(record["num_labels"] for record in records),
        "min_similarity": funnel["min_similarity"],
    }
    write_json(posixpath.join(output, MANIFEST_NAME), manifest)
    return manifest


def _check_outcomes(funnel: Mapping[str, Any], output: str, config: AssembleConfig) -> None:
    rows = funnel["rows"]
    if rows["kept"] + rows["dropped"] + rows["failed"] != rows["read"]:
        raise RuntimeError(f"{rows['read']} rows were read, but the ledger has {rows}; this is a bug of the pipeline")
    ledger = posixpath.join(output, "ledger")
    same_id = funnel["rows_by_stage_and_reason"].get("deduplicate", {}).get("duplicate_id", 0)
    if same_id > _SAME_ID_SHARE * rows["read"]:
        print(
            f"warning: {same_id} of {rows['read']} rows have the id of an earlier row and are left out; ids are the "
            "keys of the tars: if each tar starts with the same keys, rename them",
            file=sys.stderr,
        )
    check_layout(funnel["rows_by_stage_and_reason"].get("read", {}), num_rows=rows["read"])
    if rows["read"] and rows["failed"] / rows["read"] > config.max_failed_share:
        raise UserError(
            f"{rows['failed']} of {rows['read']} rows failed ({100 * rows['failed'] / rows['read']:.2f} %, limit "
            f"{100 * config.max_failed_share:g} %); see {ledger}; repair or remove their input, or raise "
            "--max-failed-share"
        )
    if rows["kept"] == 0:
        raise UserError(_why_no_image(funnel, ledger))


def _why_no_image(funnel: Mapping[str, Any], ledger: str) -> str:
    """Returns the message for a set without images; its advice depends on where most rows ended."""
    stages = funnel["rows_by_stage_and_reason"]
    read_ends = stages.get("read", {})
    num_rows = funnel["rows"]["read"]
    if num_rows == 0:
        return "the input has 0 rows, at least 1 is needed; give tars with pictures and texts as --input"
    if sum(read_ends.get(reason, 0) for reason in CURES) > _LAYOUT_SHARE * num_rows:
        return f"no row could be labelled: {_counts(read_ends)}; {cure_of(read_ends)}; see {ledger}"
    if not sum(funnel["labels"].values()):  # nothing that a threshold could have rejected
        ends = collections.Counter[str]()
        for reasons in stages.values():
            ends.update(reasons)
        return (
            f"no row could be labelled: {_counts(ends)}; see {ledger}; change the input, the tagger or the knowledge "
            "base"
        )
    return (
        f"no image of {num_rows} rows kept a label (0, at least 1 is needed); see {ledger}; lower "
        "--min-similarity or --min-images-per-entity, or change the knowledge base"
    )


def _counts(reasons: Mapping[str, int]) -> str:
    """Returns the reasons with the number of their rows, the most frequent one first."""
    return ", ".join(
        f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )


def _write_vocabulary(entries: Sequence[VocabularyEntry], path: str) -> None:
    lines = [json.dumps(dataclasses.asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
    write_bytes(path, "".join(lines).encode())
