"""What became of rows and labels, in numbers: the funnel of a set and its counts per entity."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.storage.annotation_format import write_parquet

FUNNEL_NAME = "funnel.json"
ENTITY_FILTER_NAME = "entity_filter.parquet"
LABEL_ENDS = (
    "kept", "low_probability", "low_verifier_score", "not_scored", "low_similarity", "duplicate_id", "duplicate_image",
    "rare_entity",
)  # fmt: skip
_ENTITY_FILTER_SCHEMA = pa.schema([("entity_id", pa.string()), *((end, pa.int64()) for end in LABEL_ENDS)])
_NUM_STARVED = 100  # entities listed in the funnel; the Parquet file has all


def write_entity_filter(counts: Iterable[tuple[tuple[str, str], int]], path: str) -> None:
    """Writes a row per entity with the number of its labels that were kept, and that each reason rejected.

    Args:
        counts: ((entity id, "kept" or the reason), number of labels).
        path: of the Parquet file.
    """
    entities: dict[str, dict[str, Any]] = {}
    for (entity_id, end), count in counts:
        entities.setdefault(entity_id, {"entity_id": entity_id, **dict.fromkeys(LABEL_ENDS, 0)})[end] = count
    write_parquet(path, [entities[entity_id] for entity_id in sorted(entities)], _ENTITY_FILTER_SCHEMA)


def make_funnel(records: Sequence[Mapping[str, Any]], entities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns how many rows and labels were kept, and what ended the others.

    Args:
        records: the commit records of the shards of the set.
        entities: the rows of the file that `write_entity_filter` wrote.
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
    labels = {end: sum(entity[end] for entity in entities) for end in LABEL_ENDS}
    starved = sorted(entities, key=lambda entity: (-entity["low_similarity"], entity["entity_id"]))[:_NUM_STARVED]
    return {
        "rows": rows,
        "rows_by_stage_and_reason": stages,
        "labels": labels,
        "min_similarity": records[0]["threshold"],
        "entities_most_rejected_by_similarity": [dict(entity) for entity in starved if entity["low_similarity"]],
        "num_entities_rejected_whole_by_similarity": sum(
            entity["low_similarity"] > 0 and sum(entity[end] for end in LABEL_ENDS) == entity["low_similarity"]
            for entity in entities
        ),
    }
