"""The second Beam job: annotations -> an Image-to-Entities set. It runs no model; move a threshold and run it again.

It is one job and starts anew after a kill: what it wrote by then is deleted first.
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
import numpy as np
import pyarrow as pa

from pipeline.config import AnnotateConfig, AssembleConfig
from pipeline.jobs.annotate import annotation_path
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import UserError, VocabularyEntry
from pipeline.shard_format import FORMAT_VERSION, INDEX_SUFFIX, MANIFEST_NAME, VOCABULARY_NAME
from pipeline.sources.inputs import InputShard
from pipeline.stages.build_vocabulary import BuildVocabulary
from pipeline.stages.deduplicate import Deduplicate
from pipeline.stages.select_labels import SelectLabels, labels_of_record
from pipeline.stages.write_shards import ShardTask, WriteShards
from pipeline.storage.annotation_format import read_parquet, write_parquet
from pipeline.storage.beam_files import delete_matching, match_paths, read_bytes, read_json, write_bytes, write_json
from pipeline.storage.commits import read_commit
from pipeline.storage.fingerprints import code_fingerprint, package_files

DATASET_NAME = "i2e"
FUNNEL_NAME = "funnel.json"
ENTITY_FILTER_NAME = "entity_filter.parquet"
_LABEL_ENDS = (
    "kept", "low_probability", "not_scored", "low_similarity", "duplicate_id", "duplicate_image", "rare_entity",
)  # fmt: skip
_ENTITY_FILTER_SCHEMA = pa.schema([("entity_id", pa.string()), *((end, pa.int64()) for end in _LABEL_ENDS)])
_NUM_STARVED = 100  # entities listed in the funnel; the Parquet file has all
_SAME_ID_SHARE = 0.05  # of all rows; more are a mistake in naming
_TFDS_NAMES = ("dataset_info.json", "features.json")
_CODE = (  # what the set depends on, beside annotations, input and config
    "schema.py",
    "jobs/assemble.py",
    "storage/annotation_format.py",
    "shard_format.py",
    "sources/*.py",
    "stages/select_labels.py",
    "stages/deduplicate.py",
    "stages/build_vocabulary.py",
    "stages/write_shards.py",
)


def shard_pattern(dataset: str) -> str:
    """Returns what the names of shards and of the files beside them match, however many there are."""
    return f"{dataset}-train.tfrecord-*-of-*"


def shard_file(dataset: str, index: int, count: int) -> str:
    """Returns the name of a shard as TensorFlow Datasets expects it."""
    return f"{dataset}-train.tfrecord-{index:05d}-of-{count:05d}"


def assemble(
    shards: Sequence[InputShard],
    output: str,
    *,
    kb_path: str,
    hashes: Mapping[str, str],
    config: AssembleConfig,
    annotate_config: AnnotateConfig,
    runner: RunnerConfig,
    beam_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the manifest of the set that it writes to `output` from the annotations there.

    A set that is whole and was made of the same annotations, by the same code and config, is left as it is.

    Raises:
        UserError: too many rows failed, or no image kept a label. The ledger is written by then.
    """
    tasks = _tasks(shards, output)
    made_of = _made_of(shards, hashes=hashes, config=config, annotate_config=annotate_config)
    finished = _finished_set(tasks, output, made_of)
    if finished is not None:
        print(f"assemble: {len(shards)} shards, already assembled; nothing to do", flush=True)
        return finished
    # A set without its manifest is unfinished: what was there must not pass for what is being written.
    delete_matching([posixpath.join(output, MANIFEST_NAME)])
    # Inputs may lie beside them, under names that begin alike.
    made = (shard_pattern(DATASET_NAME), "ledger/*", "provenance/*", *_TFDS_NAMES, VOCABULARY_NAME)
    delete_matching([posixpath.join(output, pattern) for pattern in made])
    if "://" not in output:
        for folder in ("ledger", "provenance"):
            os.makedirs(os.path.join(output, folder), exist_ok=True)
    print(f"assemble: {len(shards)} shards", flush=True)
    with beam.Pipeline(options=pipeline_options(runner, beam_args)) as job:
        task_list = job | "Tasks" >> beam.Create(tasks)
        labels = (
            task_list
            | "AnnotationPaths" >> beam.MapTuple(lambda _, task: task.annotation_path)
            | "Spread" >> beam.Reshuffle()
            | "ReadAnnotations" >> beam.FlatMap(read_parquet)
            | "Labels" >> beam.FlatMap(labels_of_record)
        )
        selected = labels | "SelectLabels" >> SelectLabels(config.select)
        unique = selected["kept"] | "Deduplicate" >> Deduplicate()
        classes = unique["kept"] | "BuildVocabulary" >> BuildVocabulary(config.vocabulary, kb_path=kb_path)
        rejections = (
            selected["rejected"],
            unique["rejected"],
            classes["rejected"],
        ) | "Rejections" >> beam.Flatten()
        classes["entries"] | "WriteVocabulary" >> beam.Map(_write_vocabulary, posixpath.join(output, VOCABULARY_NAME))
        (
            (
                classes["kept"] | "KeptEnds" >> beam.Map(lambda item: (item[0].entity_id, "kept")),
                rejections | "RejectedEnds" >> beam.Map(lambda item: (item.label.entity_id, item.reason)),
            )
            | "Ends" >> beam.Flatten()
            | "CountEnds" >> beam.combiners.Count.PerElement()
            | "EndsList" >> beam.combiners.ToList()
            | "WriteEnds" >> beam.Map(_write_entity_filter, posixpath.join(output, ENTITY_FILTER_NAME))
        )
        (
            {"tasks": task_list, "labels": classes["kept"], "rejections": rejections}
            | "WriteShards" >> WriteShards(threshold=selected["threshold"], hashes=hashes)
        )
    return _finish(tasks, output, made_of=made_of, config=config)


def _tasks(shards: Sequence[InputShard], output: str) -> list[tuple[str, ShardTask]]:
    return [
        (
            posixpath.basename(shard.path),
            ShardTask(
                input_path=shard.path,
                annotation_path=annotation_path(output, shard.name),
                shard_path=posixpath.join(output, shard_file(DATASET_NAME, index, len(shards))),
                ledger_path=posixpath.join(output, "ledger", shard.name + ".parquet"),
                provenance_path=posixpath.join(output, "provenance", shard.name + ".parquet"),
            ),
        )
        for index, shard in enumerate(shards)
    ]


def _made_of(
    shards: Sequence[InputShard], *, hashes: Mapping[str, str], config: AssembleConfig, annotate_config: AnnotateConfig
) -> dict[str, Any]:
    """Returns the part of the manifest that is known before the work: all that the set depends on."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": "i2e",
        "config": {"annotate": dataclasses.asdict(annotate_config), "assemble": dataclasses.asdict(config)},
        "hashes": {**hashes, "assemble_code": code_fingerprint(package_files(_CODE))},
        "inputs": [{"path": shard.path, "fingerprint": shard.fingerprint} for shard in shards],
    }


def _finished_set(
    tasks: Sequence[tuple[str, ShardTask]], output: str, made_of: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the manifest in `output` if it is one of `made_of` and no file of the set is missing; else None."""
    manifest = read_json(posixpath.join(output, MANIFEST_NAME))
    if manifest is None or any(manifest.get(name) != value for name, value in made_of.items()):
        return None
    needed = {posixpath.join(output, name) for name in (*_TFDS_NAMES, VOCABULARY_NAME, FUNNEL_NAME, ENTITY_FILTER_NAME)}
    for _, task in tasks:
        needed |= {task.shard_path + INDEX_SUFFIX, task.ledger_path, task.provenance_path}
    there = match_paths([posixpath.join(output, pattern) for pattern in ("*", "ledger/*", "provenance/*")])
    commits = [read_commit(task.shard_path) for _, task in tasks]
    hashes = [record["sha256"] if record else None for record in commits]
    is_whole = needed.issubset(there) and hashes == [shard["sha256"] for shard in manifest["shards"]]
    return manifest if is_whole else None


def _finish(
    tasks: Sequence[tuple[str, ShardTask]], output: str, *, made_of: Mapping[str, Any], config: AssembleConfig
) -> dict[str, Any]:
    """Returns the manifest, after the checks on the whole set; it is written last."""
    commits = [read_commit(task.shard_path) for _, task in tasks]
    missing = [task.shard_path for (_, task), record in zip(tasks, commits, strict=True) if record is None]
    if missing:
        raise RuntimeError(
            f"the job ended without {len(missing)} of {len(tasks)} shards, {missing[0]} first; run again"
        )
    records = [record for record in commits if record is not None]
    funnel = _funnel(records, read_parquet(posixpath.join(output, ENTITY_FILTER_NAME)))
    write_json(posixpath.join(output, FUNNEL_NAME), funnel)
    _check_outcomes(funnel, output, config)

    with_names = [
        {"file": posixpath.basename(task.shard_path), "num_records": record["num_records"], "sha256": record["sha256"]}
        for (_, task), record in zip(tasks, records, strict=True)
    ]
    _write_tfds_metadata(output, records)
    num_classes = read_bytes(posixpath.join(output, VOCABULARY_NAME)).count(b"\n")
    manifest = {
        **made_of,
        "shards": with_names,
        "num_classes": num_classes,
        "num_rows": funnel["rows"]["read"],
        "num_labels": sum(record["num_labels"] for record in records),
        "min_similarity": funnel["min_similarity"],
    }
    write_json(posixpath.join(output, MANIFEST_NAME), manifest)
    return manifest


def _funnel(records: Sequence[Mapping[str, Any]], entities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ends: collections.Counter[str] = collections.Counter()
    for record in records:
        ends.update(record["outcomes"])
    rows: dict[str, int] = {"read": sum(record["num_rows"] for record in records), "kept": 0, "dropped": 0, "failed": 0}
    stages: dict[str, dict[str, int]] = {}
    for end, count in sorted(ends.items()):
        outcome, *where = end.split("/")
        rows[outcome] += count
        if where:
            stages.setdefault(where[0], {})[where[1]] = count
    labels = {end: sum(entity[end] for entity in entities) for end in _LABEL_ENDS}
    starved = sorted(entities, key=lambda entity: (-entity["low_similarity"], entity["entity_id"]))[:_NUM_STARVED]
    return {
        "rows": rows,
        "rows_by_stage_and_reason": stages,
        "labels": labels,
        "min_similarity": records[0]["threshold"],
        "entities_most_rejected_by_similarity": [dict(entity) for entity in starved if entity["low_similarity"]],
        "num_entities_rejected_whole_by_similarity": sum(
            entity["low_similarity"] > 0 and sum(entity[end] for end in _LABEL_ENDS) == entity["low_similarity"]
            for entity in entities
        ),
    }


def _check_outcomes(funnel: Mapping[str, Any], output: str, config: AssembleConfig) -> None:
    rows = funnel["rows"]
    if rows["kept"] + rows["dropped"] + rows["failed"] != rows["read"]:
        raise RuntimeError(f"{rows['read']} rows were read, but the ledger has {rows}; this is a fault of the pipeline")
    ledger = posixpath.join(output, "ledger")
    same_id = funnel["rows_by_stage_and_reason"].get("deduplicate", {}).get("duplicate_id", 0)
    if same_id > _SAME_ID_SHARE * rows["read"]:
        print(
            f"warning: {same_id} of {rows['read']} rows have the id of an earlier row and are left out; ids are the "
            "keys of the tars: where those start anew in each tar, rename them",
            file=sys.stderr,
        )
    if rows["read"] and rows["failed"] / rows["read"] > config.max_failed_share:
        raise UserError(
            f"{rows['failed']} of {rows['read']} rows failed ({100 * rows['failed'] / rows['read']:.2f} %, limit "
            f"{100 * config.max_failed_share:g} %); {ledger} says which: mend the input, or raise --max-failed-share"
        )
    if rows["kept"] == 0:
        raise UserError(
            f"no image of {rows['read']} rows kept a label (0, at least 1 is needed); {ledger} says why: lower "
            "--min-similarity or --min-images-per-entity, or change the knowledge base"
        )


def _write_vocabulary(entries: Sequence[VocabularyEntry], path: str) -> None:
    lines = [json.dumps(dataclasses.asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
    write_bytes(path, "".join(lines).encode())


def _write_entity_filter(ends: Sequence[tuple[tuple[str, str], int]], path: str) -> None:
    entities: dict[str, dict[str, Any]] = {}
    for (entity_id, end), count in ends:
        entities.setdefault(entity_id, {"entity_id": entity_id, **dict.fromkeys(_LABEL_ENDS, 0)})[end] = count
    write_parquet(path, [entities[entity_id] for entity_id in sorted(entities)], _ENTITY_FILTER_SCHEMA)


def _write_tfds_metadata(output: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes features.json and dataset_info.json, so that `tfds.builder_from_directory` opens the set."""
    import tensorflow_datasets as tfds  # slow to import, and workers need none of it

    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name=DATASET_NAME, split="train", filetype_suffix="tfrecord"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "image_id": tfds.features.Text(),
                "text": tfds.features.Text(),
                "entity_ids": tfds.features.Sequence(tfds.features.Text()),
                "class_ids": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
                "similarities": tfds.features.Sequence(tfds.features.Scalar(np.float32)),
                "width": tfds.features.Scalar(np.int64),
                "height": tfds.features.Scalar(np.int64),
            }
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=[record["num_records"] for record in records],
                num_bytes=sum(record["size_bytes"] for record in records),
                filename_template=template,
            )
        ],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
        description="Images with entities, mined from image-text pairs.",
    )
