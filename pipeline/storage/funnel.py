"""What became of rows and labels, in numbers: the funnel of a set and its counts per entity."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from pipeline.storage.labels import LABEL_ENDS

FUNNEL_NAME = "funnel.json"
ENTITY_FILTER_NAME = "entity_filter.parquet"
ENTITY_FILTER_SCHEMA = pa.schema([("entity_id", pa.string()), *((end, pa.int64()) for end in LABEL_ENDS)])
_NUM_STARVED = 100  # entities listed in the funnel; the Parquet file has all


def write_entity_filter(path: str, counts: pa.Table, *, num_images_min: int) -> None:
    """Writes a row per entity, by id, with the number of its labels that were kept, and that each reason rejected.

    Args:
        path: of the Parquet file.
        counts: these numbers, any order, before rare entities are left out.
        num_images_min: least number of kept labels of an entity that is not rare.
    """
    is_rare = pc.less(counts["kept"], num_images_min)
    columns = {name: counts[name] for name in ENTITY_FILTER_SCHEMA.names}
    columns["rare_entity"] = pc.if_else(is_rare, counts["kept"], counts["rare_entity"])
    columns["kept"] = pc.if_else(is_rare, 0, counts["kept"])
    table = pa.table(columns, schema=ENTITY_FILTER_SCHEMA).sort_by("entity_id")
    with FileSystems.create(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_entity_filter(path: str) -> pa.Table:
    """Returns the table that `write_entity_filter` wrote to `path`."""
    with FileSystems.open(path) as file:
        return pq.read_table(pa.BufferReader(file.read()))


def make_funnel(records: Sequence[Mapping[str, Any]], entities: pa.Table, *, min_similarity: float) -> dict[str, Any]:
    """Returns how many rows and labels were kept, and what ended the others.

    Args:
        records: what was counted of each shard of the set.
        entities: the table of the file that `write_entity_filter` wrote.
        min_similarity: the threshold.
    """
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
    rejected = entities["low_similarity"]
    starved = entities.filter(pc.greater(rejected, 0))
    starved = starved.sort_by([("low_similarity", "descending"), ("entity_id", "ascending")]).slice(0, _NUM_STARVED)
    total = pa.array([0] * len(entities), pa.int64())
    for end in LABEL_ENDS:
        total = pc.add(total, entities[end])
    is_rejected_whole = pc.and_(pc.greater(rejected, 0), pc.equal(total, rejected))
    return {
        "rows": rows,
        "rows_by_stage_and_reason": stages,
        "labels": {end: pc.sum(entities[end]).as_py() or 0 for end in LABEL_ENDS},
        "min_similarity": min_similarity,
        "entities_most_rejected_by_similarity": starved.to_pylist(),
        "num_entities_rejected_whole_by_similarity": pc.sum(is_rejected_whole).as_py() or 0,
    }
