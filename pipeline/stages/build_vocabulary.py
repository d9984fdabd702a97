"""Counts the images of each entity, drops rare entities, and numbers the others by falling count."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsSingleton, PCollection

from pipeline.config import VocabularyConfig
from pipeline.kb.store import KnowledgeBase
from pipeline.schema import VocabularyEntry
from pipeline.shard_format import VOCABULARY_NAME
from pipeline.storage.digests import DigestMap, digests, write_digest_map
from pipeline.storage.funnel import ENTITY_FILTER_NAME, ENTITY_FILTER_SCHEMA, write_entity_filter
from pipeline.storage.labels import LABEL_ENDS, End, Labels

CLASS_IDS_NAME = "classes.bin"
_COUNTS = pa.schema([("entity_id", pa.string()), ("end", pa.int8()), ("count", pa.int64())])
_LINES_PER_WRITE = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a set; which entity is which lies in a file."""

    ids: DigestMap
    """Digest of an entity -> class id; an entity that it lacks is rare."""
    num_classes: int


def count_ends(labels: Labels, ends: np.ndarray) -> pa.RecordBatch:
    """Returns a row (entity id, end, number of labels) for each pair that occurs."""
    pairs, counts = np.unique(labels.entities.astype(np.int64) * len(End) + ends, return_counts=True)
    entity_ids = labels.entity_ids.take(pa.array(pairs // len(End)))
    return pa.record_batch([entity_ids, pa.array((pairs % len(End)).astype(np.int8)), pa.array(counts)], schema=_COUNTS)


def sum_counts(batches: Iterable[bytes]) -> pa.Table:
    """Returns a row per entity with the number of its labels by end: the columns of the file of entities, any order.

    Args:
        batches: what `count_ends` returned, serialised.
    """
    table = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(one), _COUNTS) for one in batches])
    encoded = table["entity_id"].combine_chunks().dictionary_encode()
    counts = np.zeros((len(encoded.dictionary), len(LABEL_ENDS)), np.int64)
    np.add.at(counts, (encoded.indices.to_numpy(), table["end"].to_numpy()), table["count"].to_numpy())
    return pa.table([encoded.dictionary, *counts.T.copy()], schema=ENTITY_FILTER_SCHEMA)


def number_classes(counts: pa.Table, *, num_images_min: int, earlier: Sequence[str] = ()) -> pa.Table:
    """Returns (entity id, image count) of the classes, in the order of their ids.

    Most images come first and equal counts by entity id, as the log-uniform sampler needs. Entities of an `earlier`
    set keep their ids, whatever their counts are now, and new ones follow.

    Args:
        counts: columns `entity_id` and `kept`, each entity once.
        num_images_min: least count of a class; with fewer, an entity of the earlier set is left with count 0.
        earlier: the entities of an earlier set, in the order of their class ids.
    """
    frequent = counts.select(["entity_id", "kept"]).filter(pc.greater_equal(counts["kept"], num_images_min))
    frequent = frequent.sort_by([("kept", "descending"), ("entity_id", "ascending")])
    before = pa.array(earlier, pa.string())
    is_new = pc.invert(pc.is_in(frequent["entity_id"], value_set=before))
    places = pc.index_in(before, value_set=frequent["entity_id"].combine_chunks())
    of_before = pc.fill_null(frequent["kept"].take(places), 0)
    new = frequent.filter(is_new)
    return pa.table(
        {
            "entity_id": pa.chunked_array([before, *new["entity_id"].chunks]),
            "image_count": pa.chunked_array([*of_before.chunks, *new["kept"].chunks], pa.int64()),
        }
    )


def redirected(earlier: Sequence[str], resolve: Callable[[str], str]) -> list[str]:
    """Returns the entities of an earlier set under the ids that they have now, each once.

    An entity that was merged into another one of them keeps its old id, and gets no labels.
    """
    now = list(earlier)
    taken = set(earlier)
    for class_id, entity_id in enumerate(earlier):
        target = resolve(entity_id)
        if target not in taken:
            taken.add(target)
            now[class_id] = target
    return now


class BuildVocabulary(beam.PTransform[PCollection[tuple[int, Any]], PCollection[Classes]]):
    """PCollection of (number of a unit, what is known of it) -> one `Classes`; the vocabulary is written as a file.

    Counts are shuffled by entity; the table of all entities is sorted in one place, in columns.

    Args:
        config: which entities are classes.
        judge: what is known of a unit, and the side input -> its labels and their ends.
        side_input: a PCollection of one element for `judge`.
        kb_path: where names are looked up.
        output: folder of the set.
        folder: where the file of class ids is written.
        earlier: path of an earlier set's vocabulary, if its class ids are to stay.
        num_parts: partitions; the result does not depend on it.
    """

    def __init__(
        self,
        config: VocabularyConfig,
        *,
        judge: Callable[[Any, Any], tuple[Labels, np.ndarray]],
        side_input: PCollection[Any],
        kb_path: str,
        output: str,
        folder: str,
        num_parts: int,
        earlier: str | None = None,
    ):
        super().__init__()
        self._config = config
        self._judge = judge
        self._side_input = side_input
        self._kb_path = kb_path
        self._output = output
        self._folder = folder
        self._num_parts = num_parts
        self._earlier = earlier

    def expand(self, units: PCollection[tuple[int, Any]]) -> Any:
        """Returns the PCollection of one `Classes`."""
        # Without any label the vocabulary is written all the same, of no entities.
        nothing = units.pipeline | "NoEntities" >> beam.Create([(0, b"")]).with_output_types(tuple[int, bytes])
        counts = (
            units
            | "CountEnds"
            >> beam.FlatMap(self._count, AsSingleton(self._side_input)).with_output_types(tuple[int, bytes])
            | "ByEntity" >> beam.GroupByKey()
            | "Sum"
            >> beam.MapTuple(lambda _, batches: (0, _serialised(sum_counts(batches)))).with_output_types(
                tuple[int, bytes]
            )
        )
        return (
            (counts, nothing)
            | "Counts" >> beam.Flatten()
            | "AllEntities" >> beam.GroupByKey()
            | "Number" >> beam.MapTuple(lambda _, batches: self._write(batches))
        )

    def _count(self, unit: tuple[int, Any], side_input: Any) -> Iterator[tuple[int, bytes]]:
        batch = count_ends(*self._judge(unit[1], side_input))
        part_of = digests(batch["entity_id"].to_pylist())[:, 0] % np.uint64(self._num_parts)
        for part in np.unique(part_of):
            rows = batch.filter(pa.array(part_of == part))
            yield int(part), rows.serialize().to_pybytes()

    def _write(self, batches: Iterable[bytes]) -> Classes:
        tables = [
            pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(one), ENTITY_FILTER_SCHEMA)])
            for one in batches
            if one
        ]
        counts = pa.concat_tables([ENTITY_FILTER_SCHEMA.empty_table(), *tables]).combine_chunks()
        base = KnowledgeBase.open(self._kb_path)
        earlier = {} if self._earlier is None else _read_names(self._earlier)
        num_images_min = self._config.min_images_per_entity
        classes = number_classes(
            counts, num_images_min=num_images_min, earlier=redirected(list(earlier), base.resolve)
        ).combine_chunks()
        write_entity_filter(posixpath.join(self._output, ENTITY_FILTER_NAME), counts, num_images_min=num_images_min)
        _write_vocabulary(posixpath.join(self._output, VOCABULARY_NAME), classes, base, earlier)
        # Labels of an entity that is left with no images are those of a rare one.
        used = np.nonzero(classes["image_count"].to_numpy())[0].astype(np.int32)
        of_used = digests(classes["entity_id"].take(pa.array(used)).to_pylist())
        ids = write_digest_map(posixpath.join(self._folder, CLASS_IDS_NAME), of_used, used)
        return Classes(ids=ids, num_classes=len(classes))


def _serialised(table: pa.Table) -> bytes:
    (batch,) = table.combine_chunks().to_batches()
    content: bytes = batch.serialize().to_pybytes()
    return content


def _read_names(path: str) -> dict[str, tuple[str, str]]:
    """Returns entity id -> (name, description), in the order of class ids, of the vocabulary at `path`."""
    names = {}
    with FileSystems.open(path) as file:
        for line in file:
            entry = json.loads(line)
            names[entry["entity_id"]] = (entry["name"], entry["description"])
    return names


def _write_vocabulary(
    path: str, classes: pa.Table, base: KnowledgeBase, earlier: Mapping[str, tuple[str, str]]
) -> None:
    """Writes a line per class; an entity that the base no longer has keeps the name of the earlier set."""
    with FileSystems.create(path) as file:
        lines = []
        class_id = 0
        for batch in classes.to_batches(max_chunksize=_LINES_PER_WRITE):
            for entity_id, count in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                try:
                    entity = base.entity(entity_id)
                    name, description = entity.label, entity.description
                except KeyError:
                    if entity_id not in earlier:
                        raise
                    name, description = earlier[entity_id]
                entry = VocabularyEntry(
                    class_id=class_id, entity_id=entity_id, name=name, description=description, image_count=count
                )
                lines.append(json.dumps(dataclasses.asdict(entry), ensure_ascii=False) + "\n")
                class_id += 1
            file.write("".join(lines).encode())
            lines = []
