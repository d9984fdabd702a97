"""The second Beam job: annotations -> an Image-to-Entities set. It runs no model: thresholds are quick to change.

First it decides what becomes of each label, from files of columns that hold no text and no picture. Then each shard
whose content differs from what is there is written. So after a kill, and with another threshold, the rest stays.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection

from pipeline.config import AnnotateConfig, AssembleConfig, SelectLabelsConfig
from pipeline.linking.weights import weights_of
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import EVIDENCE
from pipeline.shard_format import (
    FORMAT_VERSION,
    INDEX_SUFFIX,
    MANIFEST_NAME,
    VOCABULARY_NAME,
    shard_pattern,
)
from pipeline.stages.build_vocabulary import BuildVocabulary, Classes
from pipeline.stages.deduplicate import FindDuplicates, block_of_ids, block_of_images, reject_ids, reject_images
from pipeline.stages.select_labels import ChooseSelection, Selection, select_labels
from pipeline.stages.write_shards import (
    DATASET_NAME,
    LEDGER_FOLDER,
    PROVENANCE_FOLDER,
    STATED_OF_CLASSES,
    ShardTask,
    WriteShards,
)
from pipeline.storage.beam_files import delete_files, delete_matching, match_paths, read_json, write_json
from pipeline.storage.commits import COMMIT_SUFFIX
from pipeline.storage.digests import num_partitions
from pipeline.storage.earlier_set import EarlierSet, forget_snapshot, read_earlier_set
from pipeline.storage.fingerprints import code_fingerprint, config_fingerprint, package_files
from pipeline.storage.funnel import ENTITY_FILTER_NAME, FUNNEL_NAME, make_funnel, read_entity_filter
from pipeline.storage.labels import Labels, prepare_labels, read_labels
from pipeline.storage.outcomes import check_outcomes
from pipeline.storage.tfds_metadata import METADATA_NAMES, write_tfds_metadata
from pipeline.units import AnnotatedUnit

_STATE_FOLDER = "assembly"
_RECORDS_FOLDER = "records"
_SNAPSHOT_FOLDER = "earlier"
_TOTALS_NAME = "totals.json"
_RECORDS_PER_FILE = 1000
_ROWS_PER_WORKER = 50_000  # what one process assembles in the seconds in which another one starts
_LABELS_CODE = ("storage/labels.py", "storage/digests.py")  # what labels depend on, beside annotations
_SHARDS_CODE = (  # what the bytes of a shard depend on, beside annotations, the ends of labels and class ids
    "schema.py",
    "byte_cache.py",
    "units.py",
    "shard_format.py",
    "sources/*.py",
    "images/*.py",
    "stages/write_shards.py",
    "storage/ledger.py",
)
_CODE = (  # what the set depends on, beside annotations, input and config
    *_LABELS_CODE,
    *_SHARDS_CODE,
    "jobs/assemble.py",
    "storage/annotation_format.py",
    "storage/earlier_set.py",
    "storage/funnel.py",
    "storage/tfds_metadata.py",
    "stages/select_labels.py",
    "stages/deduplicate.py",
    "stages/build_vocabulary.py",
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
    earlier_set: str | None = None,
    beam_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns the manifest of the set that it writes to `output` from the annotations of `units`.

    Skipped when the set is whole and its annotations, code and config are unchanged; otherwise shards that would be the
    same again are left as they are. A set that continues an `earlier_set`, a folder, has its threshold, its class ids
    and its order of units, and takes equal shards from it.

    Raises:
        UserError: there is no earlier set; or, once the ledger is written: too many rows failed, or no image kept a
            label.
    """
    state = posixpath.join(output, _STATE_FOLDER)
    snapshot = posixpath.join(state, _SNAPSHOT_FOLDER)
    earlier = None if earlier_set is None else read_earlier_set(earlier_set, output=output, snapshot=snapshot)
    tasks = _tasks(units, output, earlier)
    inputs = _inputs_of_set(units, hashes=hashes, config=config, annotate_config=annotate_config, earlier=earlier)
    # Continued in its own folder, a finished set would come out the same again.
    ignored = {"continues"} if earlier is not None and earlier.is_replaced else set()
    finished = _finished_set(tasks, output, {name: value for name, value in inputs.items() if name not in ignored})
    if finished is not None:
        print(f"assemble: {len(units)} shards, already assembled; nothing to do", flush=True)  # pragma: no mutate
        return finished
    _clear(tasks, output)
    # Both are flushed to be seen early.
    print(f"assemble: {len(units)} shards", flush=True)  # pragma: no mutate
    num_parts = num_partitions(len(units))
    select = _selection_config(config.select, earlier)
    judge = functools.partial(_judge, config=select)
    with beam.Pipeline(options=pipeline_options(runner, beam_args, num_tasks=_num_tasks(units))) as job:
        prepared = (
            job | "Units" >> beam.Create(list(enumerate(tasks))) | "Spread" >> beam.Reshuffle()
            | "PrepareLabels" >> beam.Map(_prepare)
        )  # fmt: skip
        selection = prepared | "ChooseSelection" >> ChooseSelection(
            select, labels_of=_labels_of_numbered, num_parts=num_parts, folder=state
        )
        find = functools.partial(FindDuplicates, judge=judge, side_input=selection, num_parts=num_parts)
        known = prepared | "Known" >> beam.MapTuple(lambda number, task: (number, {"tasks": [task]}))
        same_id = known | "SameId" >> find(block_of_ids)
        known = {"tasks": prepared, "same_id": same_id} | "WithSameId" >> beam.CoGroupByKey()
        same_image = known | "SameImage" >> find(block_of_images)
        parts = {"tasks": prepared, "same_id": same_id, "same_image": same_image}
        decided = parts | "WithDuplicates" >> beam.CoGroupByKey()
        classes = decided | "BuildVocabulary" >> BuildVocabulary(
            config.vocabulary,
            judge=judge,
            side_input=selection,
            kb_path=kb_path,
            output=output,
            folder=state,
            num_parts=num_parts,
            earlier=None if earlier is None else earlier.vocabulary_path,
        )
        records = decided | "WriteShards" >> WriteShards(
            task_of=_task_of,
            judge=judge,
            selection=selection,
            classes=classes,
            members=annotate_config.members,
            store=config.store,
            code=code_fingerprint(package_files(_SHARDS_CODE)) + config_fingerprint(config.store),
        )
        records | "WriteRecords" >> WriteRecords(posixpath.join(state, _RECORDS_FOLDER))
        selection | "WriteTotals" >> beam.Map(_write_totals, beam.pvalue.AsSingleton(classes), state)
    manifest = _finish(tasks, output, inputs=inputs, config=config, to_explain=_to_explain(kb_path, annotate_config))
    forget_snapshot(snapshot)
    return manifest


class WriteRecords(beam.PTransform[PCollection[tuple[int, dict[str, Any]]], PCollection[None]]):
    """PCollection of (number of a unit, record of its shard) -> JSON files in `folder`, each of up to a thousand.

    So the job's records are read back with a call per thousand.
    """

    def __init__(self, folder: str):
        super().__init__()
        self._folder = folder

    def expand(self, records: PCollection[tuple[int, dict[str, Any]]]) -> Any:
        """Returns the PCollection of nothing."""
        return (
            records
            | "ByThousand" >> beam.MapTuple(lambda number, record: (number // _RECORDS_PER_FILE, (number, record)))
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.MapTuple(self._write)
        )

    def _write(self, thousand: int, records: Iterable[tuple[int, dict[str, Any]]]) -> None:
        by_number = dict(records)
        in_order = [by_number[number] for number in sorted(by_number)]
        write_json(_records_path(self._folder, thousand), {"records": in_order})


def _records_path(folder: str, thousand: int) -> str:
    return posixpath.join(folder, f"{thousand:05d}.json")


def _num_tasks(units: Sequence[AnnotatedUnit]) -> int:
    return min(len(units), sum(unit.num_rows for unit in units) // _ROWS_PER_WORKER)


def _prepare(numbered: tuple[int, ShardTask]) -> tuple[int, ShardTask]:
    task = numbered[1]
    annotated = task.annotated
    prepare_labels(annotated.path, task.labels_path, key=task.labels_key, sha256=annotated.sha256)
    return numbered


def _labels_of_numbered(numbered: tuple[int, ShardTask]) -> Labels:
    return read_labels(numbered[1].labels_path, key=numbered[1].labels_key)


def _task_of(known: Mapping[str, Iterable[Any]]) -> ShardTask:
    (task,) = known["tasks"]
    return task  # type: ignore[no-any-return]


def _judge(
    known: Mapping[str, Iterable[Any]], selection: Selection, *, config: SelectLabelsConfig
) -> tuple[Labels, np.ndarray]:
    """Returns the labels of a unit, and what becomes of each as far as is known: int8, values of `End`."""
    task = _task_of(known)
    labels = read_labels(task.labels_path, key=task.labels_key)
    ends = select_labels(labels, config, selection)
    reject_ids(ends, labels, known.get("same_id", ()))
    reject_images(ends, known.get("same_image", ()))
    return labels, ends


def _write_totals(selection: Selection, classes: Classes, folder: str) -> None:
    write_json(
        posixpath.join(folder, _TOTALS_NAME),
        {"min_similarity": selection.min_similarity, "num_classes": classes.num_classes},
    )


def _tasks(units: Sequence[AnnotatedUnit], output: str, earlier: EarlierSet | None) -> list[ShardTask]:
    """Returns the tasks in the order of the shards: units of the earlier set first, in its order, then new ones."""
    code = code_fingerprint(package_files(_LABELS_CODE))
    index_before = {} if earlier is None else {name: index for index, name in enumerate(earlier.units)}
    tasks: list[ShardTask] = []
    for annotated in sorted(units, key=lambda one: index_before.get(one.unit.name, len(index_before))):
        task = ShardTask(
            annotated=annotated,
            index=len(tasks),
            output=output,
            labels_key=hashlib.sha256(json.dumps([annotated.key, code]).encode()).hexdigest(),
        )
        before = index_before.get(annotated.unit.name)
        if earlier is not None and before is not None and not earlier.is_replaced:
            task = dataclasses.replace(task, earlier=dataclasses.replace(task, index=before, output=earlier.folder))
        tasks.append(task)
    return tasks


def _selection_config(config: SelectLabelsConfig, earlier: EarlierSet | None) -> SelectLabelsConfig:
    """Returns `config`, with the threshold of the earlier set unless it has one."""
    if earlier is None or config.min_similarity is not None:
        return config
    return dataclasses.replace(config, min_similarity=earlier.min_similarity)


def _clear(tasks: Sequence[ShardTask], output: str) -> None:
    """Deletes the manifest and what this set does not have, and creates the folders that a disk needs."""
    # A set without its manifest is unfinished: old files must not pass for those that are being written.
    delete_matching([posixpath.join(output, MANIFEST_NAME)])
    _delete_leftovers(tasks, output)
    if "://" not in output:
        for folder in (LEDGER_FOLDER, PROVENANCE_FOLDER):
            os.makedirs(os.path.join(output, folder), exist_ok=True)


def _delete_leftovers(tasks: Sequence[ShardTask], output: str) -> None:
    """Deletes what an earlier run left of shards and units that this set does not have."""
    needed = {os.path.basename(path) for task in tasks for path in (*_files(task), task.labels_path)}
    needed |= {os.path.basename(task.shard_path) + COMMIT_SUFFIX for task in tasks}
    # Only these: the folder may also hold inputs whose names begin alike.
    patterns = (
        shard_pattern(DATASET_NAME),
        f"{LEDGER_FOLDER}/*",
        f"{PROVENANCE_FOLDER}/*",
        f"{_STATE_FOLDER}/labels/*",
    )
    found = match_paths([posixpath.join(output, pattern) for pattern in patterns])
    delete_files([path for path in found if posixpath.basename(path) not in needed])
    delete_matching([posixpath.join(output, _STATE_FOLDER, _RECORDS_FOLDER, "*")])


def _files(task: ShardTask) -> tuple[str, ...]:
    """Returns the paths of what a set holds of a unit."""
    return task.shard_path, task.shard_path + INDEX_SUFFIX, task.ledger_path, task.provenance_path


def _inputs_of_set(
    units: Sequence[AnnotatedUnit],
    *,
    hashes: Mapping[str, str],
    config: AssembleConfig,
    annotate_config: AnnotateConfig,
    earlier: EarlierSet | None,
) -> dict[str, Any]:
    """Returns the part of the manifest that is known before the set is made: all that it depends on."""
    annotate = dataclasses.asdict(annotate_config)
    del annotate["read"]  # it changes no byte, so nothing is made again for it
    return {
        "format_version": FORMAT_VERSION,
        "kind": "i2e",
        "config": {"annotate": annotate, "assemble": dataclasses.asdict(config)},
        "hashes": {**hashes, "assemble_code": code_fingerprint(package_files(_CODE))},
        "continues": None if earlier is None else earlier.fingerprint,
        # Failed rows that were run again change annotations, and nothing else.
        "annotations": hashlib.sha256(json.dumps([one.key for one in units]).encode()).hexdigest(),
        "inputs": list(
            {
                part.path: {"path": part.path, "file": part.file, "fingerprint": part.fingerprint}
                for annotated in units
                for part in annotated.unit.parts
            }.values()
        ),
    }


def _to_explain(kb_path: str, config: AnnotateConfig) -> dict[str, Any]:
    """Returns what explains a set to people: where names are looked up, and the linker's weights.

    Both count by their hashes, which are among the inputs.
    """
    weights = weights_of(config.disambiguate)
    by_name = dict(zip(EVIDENCE, weights.of_evidence, strict=True))  # pragma: no mutate: weights have one of each
    return {
        "kb": kb_path,
        "linker": {"bias": weights.bias, "probability_min": weights.probability_min, "weights": by_name},
    }


def _finished_set(tasks: Sequence[ShardTask], output: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest in `output` if it has the same `inputs` and no file of the set is missing; else None."""
    manifest = read_json(posixpath.join(output, MANIFEST_NAME))
    if manifest is None or any(manifest.get(name) != value for name, value in inputs.items()):
        return None
    is_whole = not _missing_files(tasks, output, (*METADATA_NAMES, VOCABULARY_NAME, FUNNEL_NAME, ENTITY_FILTER_NAME))
    return manifest if is_whole else None


def _missing_files(tasks: Sequence[ShardTask], output: str, names: Sequence[str]) -> list[str]:
    """Returns the paths of the files of the set that are not there, in three listings."""
    needed = [posixpath.join(output, name) for name in names]
    for task in tasks:
        needed += [*_files(task), task.shard_path + COMMIT_SUFFIX]
    folders = ("*", f"{LEDGER_FOLDER}/*", f"{PROVENANCE_FOLDER}/*")
    existing = set(match_paths([posixpath.join(output, pattern) for pattern in folders]))
    return [path for path in needed if path not in existing]


def _finish(
    tasks: Sequence[ShardTask],
    output: str,
    *,
    inputs: Mapping[str, Any],
    config: AssembleConfig,
    to_explain: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the manifest, after the checks on the whole set; it is written last."""
    state = posixpath.join(output, _STATE_FOLDER)
    records: list[dict[str, Any]] = []
    for thousand in range(-(-len(tasks) // _RECORDS_PER_FILE)):
        written = read_json(_records_path(posixpath.join(state, _RECORDS_FOLDER), thousand))
        records += written["records"] if written else ()
    missing = _missing_files(tasks, output, (VOCABULARY_NAME, ENTITY_FILTER_NAME))
    if missing or len(records) != len(tasks):
        raise RuntimeError(
            f"the job ended with {len(records)} of {len(tasks)} shards and without {len(missing)} files "
            f"({(missing or [''])[0]}); run again, and only one run at a time"
        )
    totals = read_json(posixpath.join(state, _TOTALS_NAME))
    assert totals is not None  # the job wrote it
    entities = read_entity_filter(posixpath.join(output, ENTITY_FILTER_NAME))
    funnel = make_funnel(records, entities, min_similarity=totals["min_similarity"])
    write_json(posixpath.join(output, FUNNEL_NAME), funnel)
    check_outcomes(funnel, posixpath.join(output, LEDGER_FOLDER), config)
    has_fields = bool(inputs["config"]["annotate"]["members"]["keep_fields"])
    write_tfds_metadata(output, DATASET_NAME, records, has_fields=has_fields)
    manifest = {
        **inputs,
        **to_explain,
        "shards": [
            {
                "file": posixpath.basename(task.shard_path),
                "unit": task.annotated.unit.name,
                "num_records": record["num_records"],
                "sha256": record["sha256"],
                **{name: record[name] for name in STATED_OF_CLASSES if name in record},
            }
            for task, record in zip(tasks, records, strict=True)  # pragma: no mutate: as many, see above
        ],
        "num_classes": totals["num_classes"],
        "num_rows": funnel["rows"]["read"],
        "num_labels": sum(record["num_labels"] for record in records),
        "min_similarity": totals["min_similarity"],
    }
    write_json(posixpath.join(output, MANIFEST_NAME), manifest)
    return manifest
