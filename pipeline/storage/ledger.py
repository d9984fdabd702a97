"""Ledger and provenance of a unit, built in columns from its annotations and the ends of its labels."""

from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from pipeline.storage.annotation_format import CANDIDATE_TYPE, FIELDS_TYPE
from pipeline.storage.labels import STAGE_OF_END, End, Labels

_LABEL = pa.struct(  # a label that the links of a row gave; stage and reason of a kept one are null
    [
        ("entity_id", pa.string()),
        ("mention", pa.int32()),  # position in the row's `linked`
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("entity_ids", pa.list_(pa.string())),
        ("labels", pa.list_(_LABEL)),
        ("fields", FIELDS_TYPE),
    ]
)
PROVENANCE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("entity_id", pa.string()),
        ("class_id", pa.int64()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("surface", pa.string()),
        ("finder", pa.string()),
        ("mention_score", pa.float64()),
        ("probability", pa.float64()),
        ("candidates", pa.list_(CANDIDATE_TYPE)),
        ("similarity", pa.float64()),
    ]
)
_NO_LABEL = len(End)  # of a row whose links chose no entity
# By end, and last that of a row without labels: what the ledger says of a row whose best label ended so.
_OUTCOMES = pa.array(["failed" if end == End.IMAGE_CHANGED else "dropped" for end in End] + ["dropped"])
_STAGES = pa.array([STAGE_OF_END.get(end) for end in End] + ["select_labels"])
_REASONS = pa.array([end.reason if end in STAGE_OF_END else None for end in End] + ["no_entity"])


def ledger_table(annotations: pa.Table, labels: Labels, ends: np.ndarray) -> pa.Table:
    """Returns one row per row of `annotations`, each with exactly one outcome.

    A row is kept if one of its labels is; otherwise it ended where the label did that came furthest.
    """
    num_rows = len(annotations)
    furthest = np.full(num_rows, -1)  # pragma: no mutate: any number below the ends
    np.maximum.at(furthest, labels.rows, ends)
    furthest[furthest < 0] = _NO_LABEL  # pragma: no mutate: what rows with a kept label have is not used
    is_kept = kept_rows(num_rows, labels, ends)
    is_annotated = pc.equal(annotations["outcome"].combine_chunks(), "annotated")
    of_annotated = {
        "outcome": pc.if_else(pa.array(is_kept), "kept", _OUTCOMES.take(pa.array(furthest))),
        "stage": pc.if_else(pa.array(is_kept), None, _STAGES.take(pa.array(furthest))),
        "reason": pc.if_else(pa.array(is_kept), None, _REASONS.take(pa.array(furthest))),
    }
    columns = {name: annotations[name].combine_chunks() for name in ("image_id", "shard", "row", "fields")}
    for name, values in of_annotated.items():
        columns[name] = pc.if_else(is_annotated, values, annotations[name].combine_chunks())

    kept = sorted_by_entity(labels, np.nonzero(ends == End.KEPT)[0])
    columns["entity_ids"] = _lists(labels.rows[kept], num_rows, _entity_ids(labels, kept))
    all_ends = pa.array(ends.astype(np.int64))
    fields = [
        _entity_ids(labels, np.arange(len(labels))),
        pa.array(labels.mentions),
        _STAGES.take(all_ends),
        _REASONS.take(all_ends),
    ]
    columns["labels"] = _lists(labels.rows, num_rows, pa.StructArray.from_arrays(fields, fields=list(_LABEL)))
    return pa.table(columns, schema=LEDGER_SCHEMA)


def provenance_table(annotations: pa.Table, labels: Labels, kept: np.ndarray, class_ids: np.ndarray) -> pa.Table:
    """Returns one row per kept label.

    Args:
        annotations: those of the unit, with all columns.
        labels: the unit's labels.
        kept: positions of the kept labels, in the order of the result.
        class_ids: int64, of each of them.
    """
    linked = annotations["linked"].combine_chunks()
    first_mentions = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(linked), 0).to_numpy())])
    rows = labels.rows[kept]
    mentions = linked.flatten().take(pa.array(first_mentions[rows] + labels.mentions[kept]))
    columns = {
        name: mentions.field(name) for name in PROVENANCE_SCHEMA.names if mentions.type.get_field_index(name) >= 0
    }
    columns |= {
        "image_id": annotations["image_id"].combine_chunks().take(pa.array(rows)),
        "entity_id": _entity_ids(labels, kept),
        "class_id": pa.array(class_ids),
        "similarity": pa.array(labels.similarities[kept]),
    }
    return pa.table(columns, schema=PROVENANCE_SCHEMA)


def kept_rows(num_rows: int, labels: Labels, ends: np.ndarray) -> np.ndarray:
    """Returns bool `[num_rows]`: whether each row has a kept label."""
    is_kept = np.zeros(num_rows, bool)
    is_kept[labels.rows[ends == End.KEPT]] = True
    return is_kept


def sorted_by_entity(labels: Labels, chosen: np.ndarray) -> np.ndarray:
    """Returns the positions `chosen`, by row and then by entity id."""
    place_of_entity = np.argsort(pc.sort_indices(labels.entity_ids).to_numpy())
    return chosen[np.lexsort((place_of_entity[labels.entities[chosen]], labels.rows[chosen]))]


def count_outcomes(ledger: pa.Table) -> dict[str, int]:
    """Returns "outcome/stage/reason" -> rows; kept rows have an outcome alone."""
    columns = [ledger[name].to_pylist() for name in ("outcome", "stage", "reason")]
    ends = zip(*columns, strict=True)  # pragma: no mutate: columns of a table are equally long
    return dict(collections.Counter("/".join(filter(None, end)) for end in ends))


def write_table(path: str, table: pa.Table) -> int:
    """Writes `table` at `path` and returns its size in bytes; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")  # pragma: no mutate: capitals say the same
    content = sink.getvalue()
    with FileSystems.create(path) as file:
        file.write(content.to_pybytes())
    return int(content.size)


def _entity_ids(labels: Labels, chosen: np.ndarray) -> pa.Array:
    return labels.entity_ids.take(pa.array(labels.entities[chosen]))


def _lists(rows: np.ndarray, num_rows: int, values: pa.Array) -> pa.ListArray:
    """Returns for each of `num_rows` rows the list of its `values`, whose `rows` ascend."""
    offsets = np.searchsorted(rows, np.arange(num_rows + 1))
    return pa.ListArray.from_arrays(pa.array(offsets), values)
