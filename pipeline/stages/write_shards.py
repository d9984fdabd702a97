"""Writes the shard of each unit, with its ledger and its provenance, unless the same ones are there already.

The pictures are read again from the input. A shard says in its commit record what it was made from: its unit's
annotations, what became of each label, the class ids, code and config. Only shards for which that differs are written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton, PCollection

from pipeline.config import DEFAULT_MEMBERS, MembersConfig, StoreConfig
from pipeline.images.stored import stored_image
from pipeline.schema import LabelledImage
from pipeline.shard_format import INDEX_SUFFIX, ShardWriter, shard_file
from pipeline.storage.annotation_format import check_one_outcome_per_row
from pipeline.storage.beam_files import copy_file, written_locally
from pipeline.storage.commits import commit, read_commit, uncommit
from pipeline.storage.digests import digests
from pipeline.storage.labels import STAGE_OF_END, End, Labels, labels_path
from pipeline.storage.ledger import (
    count_outcomes,
    kept_rows,
    ledger_table,
    provenance_table,
    sorted_by_entity,
    write_table,
)
from pipeline.storage.unit_commits import read_annotations
from pipeline.units import AnnotatedUnit, PicturePlace, read_pictures

STAGE = "write_shards"
DATASET_NAME = "i2e"
LEDGER_FOLDER, PROVENANCE_FOLDER = "ledger", "provenance"
_RECORD_COLUMNS = ("image_id", "shard", "row", "text", "image_sha256", "image_start_byte", "image_bytes", "fields")
STATED_OF_CLASSES = ("min_class_id", "max_class_id", "most_entities")
"""Of a shard's labels: the least and the greatest class id, and how many an image has at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A unit, and the number of the shard that is written of it."""

    annotated: AnnotatedUnit
    index: int
    output: str
    """Folder of the set."""
    labels_key: str
    """A hash of all that the unit's labels depend on."""
    earlier: ShardTask | None = None
    """The shard of the same unit in an earlier set elsewhere, which is copied if it would be the same."""

    @property
    def labels_path(self) -> str:
        """The path of the unit's labels."""
        return labels_path(self.output, self.annotated.unit.name)

    @property
    def shard_path(self) -> str:
        """The path of the shard."""
        return posixpath.join(self.output, shard_file(DATASET_NAME, self.index))

    @property
    def ledger_path(self) -> str:
        """The path of the unit's ledger."""
        return posixpath.join(self.output, LEDGER_FOLDER, self.annotated.unit.name + ".parquet")

    @property
    def provenance_path(self) -> str:
        """The path of the unit's provenance."""
        return posixpath.join(self.output, PROVENANCE_FOLDER, self.annotated.unit.name + ".parquet")


class WriteShards(beam.PTransform[PCollection[tuple[int, Any]], PCollection[tuple[int, dict[str, Any]]]]):
    """PCollection of (number of a unit, what is known of it) -> (number, what the commit record of its shard holds).

    Rows are counted by their outcome: kept, dropped or failed; labels by their stage and reason.

    Args:
        task_of: what is known of a unit -> its task.
        judge: what is known of a unit, and `selection` -> its labels and their ends.
        selection: a PCollection of one element, for `judge`.
        classes: a PCollection of one `Classes`.
        members: which members of a tar make a row, as when the unit was annotated.
        store: how pictures are stored.
        code: a hash of the code and of the config that decide about the bytes of a shard.
    """

    def __init__(
        self,
        *,
        task_of: Callable[[Any], ShardTask],
        judge: Callable[[Any, Any], tuple[Labels, np.ndarray]],
        selection: PCollection[Any],
        classes: PCollection[Any],
        members: MembersConfig = DEFAULT_MEMBERS,
        store: StoreConfig,
        code: str,
    ):
        super().__init__()
        self._do_fn = _WriteDoFn(task_of, judge, members, store, code)
        self._side_inputs = (AsSingleton(selection), AsSingleton(classes))

    def expand(self, units: PCollection[tuple[int, Any]]) -> Any:
        """Returns the PCollection of records."""
        return units | "Write" >> beam.ParDo(self._do_fn, *self._side_inputs)


class _WriteDoFn(beam.DoFn):
    def __init__(
        self,
        task_of: Callable[[Any], ShardTask],
        judge: Callable[[Any, Any], tuple[Labels, np.ndarray]],
        members: MembersConfig,
        store: StoreConfig,
        code: str,
    ):
        self._task_of = task_of
        self._judge = judge
        self._members = members
        self._store = store
        self._code = code

    def default_type_hints(self) -> None:
        """Returns no hints: Beam would take those of the side inputs for the element's."""

    def process(self, unit: tuple[int, Any], selection: Any, classes: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        task = self._task_of(unit[1])
        labels, ends = self._judge(unit[1], selection)
        of_entities = digests(labels.entity_ids.to_pylist())
        class_of_entity = classes.ids.lookup(of_entities, default=-1)  # pragma: no mutate: any number below 0
        class_ids = class_of_entity[labels.entities].astype(np.int64)
        ends[(ends == End.KEPT) & (class_ids < 0)] = End.RARE_ENTITY
        fingerprint = shard_fingerprint(task, ends, class_ids, self._code)
        record = finished_shard(task, fingerprint) or copy_earlier_shard(task, fingerprint)
        if record is None:
            Metrics.counter(STAGE, "shards_written").inc()
            record = write_shard(
                task, labels, ends, class_ids, members=self._members, store=self._store, fingerprint=fingerprint
            )
        _count(ends, record["outcomes"])
        yield unit[0], record


def shard_fingerprint(task: ShardTask, ends: np.ndarray, class_ids: np.ndarray, code: str) -> str:
    """Returns a hash of all that the shard, its ledger and its provenance depend on.

    Where the shard lies, and which number it has, is not among it: nor does any byte of it depend on that.
    """
    digest = hashlib.sha256(json.dumps([task.labels_key, code]).encode())
    digest.update(ends.astype("<i1").tobytes())
    digest.update(class_ids[ends == End.KEPT].astype("<i8").tobytes())
    return digest.hexdigest()


def finished_shard(task: ShardTask, fingerprint: str) -> dict[str, Any] | None:
    """Returns the commit record of the task's shard if it has this fingerprint and all its files are there."""
    record = read_commit(task.shard_path)
    if record is None or record.get("fingerprint") != fingerprint:
        return None
    sizes = {name: _size_bytes(path) for name, path in _beside(task).items()}
    return record if sizes == record["beside"] else None


def copy_earlier_shard(task: ShardTask, fingerprint: str) -> dict[str, Any] | None:
    """Returns the commit record of the task's shard after it was copied from the earlier set; None if that has another.

    The files are copied as they are, and compared by the hash in the earlier record.
    """
    before = None if task.earlier is None else finished_shard(task.earlier, fingerprint)
    if task.earlier is None or before is None:
        return None
    uncommit(task.shard_path)
    copy_file(task.earlier.shard_path, task.shard_path)
    paths = _beside(task)
    for name, path in _beside(task.earlier).items():
        copy_file(path, paths[name])
    commit(task.shard_path, {name: value for name, value in before.items() if name != "sha256"})
    copied = finished_shard(task, fingerprint)
    if copied is None or copied["sha256"] != before["sha256"]:
        return None
    Metrics.counter(STAGE, "shards_copied").inc()
    return copied


def write_shard(
    task: ShardTask,
    labels: Labels,
    ends: np.ndarray,
    class_ids: np.ndarray,
    *,
    members: MembersConfig,
    store: StoreConfig,
    fingerprint: str,
) -> dict[str, Any]:
    """Writes the task's shard and the files beside it, and returns its commit record, which is written last.

    Args:
        task: the unit.
        labels: its labels.
        ends: what became of them.
        class_ids: int64, that of each kept label.
        members: which members of a tar make a row.
        store: how pictures are stored.
        fingerprint: what they are all made from.

    Raises:
        UserError: the annotations were changed since they were committed, or the input cannot be read.
    """
    uncommit(task.shard_path)
    annotations = _read_annotations(task)
    kept = sorted_by_entity(labels, np.nonzero(ends == End.KEPT)[0])
    lost = _write_records(task, annotations, labels, kept, class_ids, members, store)
    if lost:
        ends = ends.copy()
        for end in set(lost.values()):
            rows = [row for row, end_of_row in lost.items() if end_of_row == end]
            ends[(ends == End.KEPT) & np.isin(labels.rows, rows)] = end
        kept = kept[ends[kept] == End.KEPT]
    ledger = ledger_table(annotations, labels, ends)
    num_kept = int(kept_rows(len(annotations), labels, ends).sum())
    outcomes = count_outcomes(ledger)
    if outcomes.get("kept", 0) != num_kept or sum(outcomes.values()) != task.annotated.num_rows:
        raise RuntimeError(
            f"{task.shard_path} has {num_kept} records of {task.annotated.num_rows} rows, but its ledger counts "
            f"{outcomes}; this is a bug of the pipeline"
        )
    provenance = provenance_table(annotations, labels, kept, class_ids[kept])
    write_table(task.ledger_path, ledger)
    write_table(task.provenance_path, provenance)
    commit(
        task.shard_path,
        {
            "num_records": num_kept,
            "num_rows": task.annotated.num_rows,
            "num_labels": len(kept),
            **_stated_of_classes(labels.rows[kept], class_ids[kept]),
            "outcomes": outcomes,
            "beside": {name: _size_bytes(path) for name, path in _beside(task).items()},
            # A picture that changed may be the right one again at the next run.
            "fingerprint": None if End.IMAGE_CHANGED in lost.values() else fingerprint,
        },
    )
    record = read_commit(task.shard_path)
    assert record is not None  # it was just written
    return record


def _stated_of_classes(rows: np.ndarray, class_ids: np.ndarray) -> dict[str, int]:
    """Returns what the manifest states of a shard's labels, for the trainer; nothing of a shard without any.

    Args:
        rows: int64 [labels], the row of each label.
        class_ids: int64 [labels].
    """
    if not len(rows):
        return {}
    most_entities = np.unique(rows, return_counts=True)[1].max()
    values = (int(class_ids.min()), int(class_ids.max()), int(most_entities))
    return dict(zip(STATED_OF_CLASSES, values, strict=True))  # pragma: no mutate: there are three of both


def _write_records(
    task: ShardTask,
    annotations: pa.Table,
    labels: Labels,
    kept: np.ndarray,
    class_ids: np.ndarray,
    members: MembersConfig,
    store: StoreConfig,
) -> dict[int, End]:
    """Writes the records of the labels `kept`; returns row -> end of those whose picture cannot be written."""
    rows, starts = np.unique(labels.rows[kept], return_index=True)
    labels_of_rows = map(slice, starts.tolist(), [*starts[1:].tolist(), len(kept)])
    entity_ids = labels.entity_ids.take(pa.array(labels.entities[kept])).to_pylist()
    similarities, class_ids_kept = labels.similarities[kept].tolist(), class_ids[kept].tolist()
    annotated = annotations.select(_RECORD_COLUMNS).take(pa.array(rows)).to_pylist()
    places = [PicturePlace(one["shard"], one["row"], one["image_start_byte"], one["image_bytes"]) for one in annotated]
    pictures = read_pictures(task.annotated.unit, places, members)
    lost: dict[int, End] = {}
    with written_locally(task.shard_path) as path, ShardWriter(path) as writer:
        of_rows = zip(rows.tolist(), annotated, pictures, labels_of_rows, strict=True)  # pragma: no mutate: one each
        for row, record, picture, of_row in of_rows:
            if hashlib.sha256(picture).hexdigest() != record["image_sha256"]:
                lost[row] = End.IMAGE_CHANGED
                continue
            try:
                stored = stored_image(picture, max_side_px=store.max_side_px)
            except ValueError:
                lost[row] = End.BROKEN_IMAGE
                continue
            writer.write(
                LabelledImage(
                    image=stored.encoded,
                    image_id=record["image_id"],
                    text=record["text"],
                    width_px=stored.width_px,
                    height_px=stored.height_px,
                    entity_ids=tuple(entity_ids[of_row]),
                    class_ids=tuple(class_ids_kept[of_row]),
                    similarities=tuple(similarities[of_row]),
                    fields=tuple(record["fields"] or ()),
                )
            )
    return lost


def _read_annotations(task: ShardTask) -> pa.Table:
    """Returns the annotations of the task's unit.

    Raises:
        UserError: they are not the ones that were committed.
    """
    content = read_annotations(task.annotated.path, sha256=task.annotated.sha256)
    file = pq.ParquetFile(pa.BufferReader(content))
    table = file.read(use_threads=False)  # pragma: no mutate: a process has one core
    if len(table) != task.annotated.num_rows:
        check_one_outcome_per_row(
            table.select(["row"]).to_pylist(), num_rows=task.annotated.num_rows, shard=task.annotated.unit.name
        )
    return table


def _beside(task: ShardTask) -> dict[str, str]:
    return {"index": task.shard_path + INDEX_SUFFIX, "ledger": task.ledger_path, "provenance": task.provenance_path}


def _size_bytes(path: str) -> int | None:
    """Returns the size of the file at `path`; None if there is none."""
    if not FileSystems.exists(path):
        return None
    size: int = FileSystems.get_filesystem(path).size(path)
    return size


def _count(ends: np.ndarray, outcomes: dict[str, int]) -> None:
    """Counts rows by their outcome, and labels by the stage that rejected them, or that they passed."""
    for name in ("kept", "dropped", "failed"):
        number = sum(count for end, count in outcomes.items() if end.split("/")[0] == name)
        Metrics.counter(STAGE, name).inc(number)
    left = len(ends)
    for stage in dict.fromkeys(STAGE_OF_END.values()):
        for end, stage_of_end in STAGE_OF_END.items():
            if stage_of_end != stage or not (number := int(np.count_nonzero(ends == end))):
                continue
            Metrics.counter(stage, f"rejected_{end.reason}").inc(number)
            left -= number
        if stage != STAGE:
            Metrics.counter(stage, "kept").inc(left)
