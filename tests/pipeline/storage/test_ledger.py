"""Ledger and provenance of a unit, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.annotation_format import ANNOTATION_SCHEMA
from pipeline.storage.labels import End, labels_of_annotations
from pipeline.storage.ledger import (
    LEDGER_SCHEMA,
    PROVENANCE_SCHEMA,
    count_outcomes,
    kept_rows,
    ledger_table,
    provenance_table,
    sorted_by_entity,
    write_table,
)


def mention(chosen: str | None, surface: str = "") -> dict[str, Any]:
    candidates = [{"entity_id": one, "similarity": 0.5, "score": 0.25} for one in (chosen, "E9") if one]
    return {"surface": surface, "start": 1, "end": 2, "finder": "tagger", "chosen": chosen, "probability": 0.75,
            "mention_score": 0.5, "candidates": candidates}  # fmt: skip


def annotations(*rows: tuple[str, list[dict[str, Any]]]) -> pa.Table:
    """Returns annotated rows; an outcome "dropped" is of find_mentions."""
    records = []
    for number, (image_id, linked) in enumerate(rows):
        is_dropped = image_id.startswith("dropped")
        records.append({
            "image_id": image_id, "shard": "s.tar", "row": 10 + number, "linked": None if is_dropped else linked,
            "image_sha256": "0" * 64,
            "outcome": "dropped" if is_dropped else "annotated", "stage": "find_mentions" if is_dropped else None,
            "reason": "no_mention" if is_dropped else None,
        })  # fmt: skip
    return pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA)


TABLE = annotations(
    ("a", [mention("E2", "two"), mention("E1", "one"), mention(None), mention("E3")]),
    ("dropped", []),
    ("b", [mention("E1"), mention("E2")]),
    ("c", [mention(None)]),
    ("d", [mention("E1"), mention("E2")]),
)
LABELS = labels_of_annotations(TABLE)  # a: E2 E1 E3, b: E1 E2, d: E1 E2
ENDS = np.array([
    End.KEPT, End.KEPT, End.RARE_ENTITY, End.DUPLICATE_IMAGE, End.LOW_SIMILARITY, End.IMAGE_CHANGED, End.LOW_SIMILARITY,
], np.int8)  # fmt: skip


def test_a_row_is_kept_or_ended_where_its_best_label_did() -> None:
    table = ledger_table(TABLE, LABELS, ENDS)
    assert table.schema.equals(LEDGER_SCHEMA)
    rows = table.to_pylist()
    assert [(row["image_id"], row["row"], row["outcome"], row["stage"], row["reason"]) for row in rows] == [
        ("a", 10, "kept", None, None),
        ("dropped", 11, "dropped", "find_mentions", "no_mention"),
        ("b", 12, "dropped", "deduplicate", "duplicate_image"),
        ("c", 13, "dropped", "select_labels", "no_entity"),
        ("d", 14, "failed", "write_shards", "image_changed"),
    ]
    assert rows[0]["entity_ids"] == ["E1", "E2"] and rows[2]["entity_ids"] == rows[1]["labels"] == []
    # In the order of the mentions.
    assert rows[0]["labels"] == [
        {"entity_id": "E2", "mention": 0, "stage": None, "reason": None},
        {"entity_id": "E1", "mention": 1, "stage": None, "reason": None},
        {"entity_id": "E3", "mention": 3, "stage": "build_vocabulary", "reason": "rare_entity"},
    ]
    assert [label["reason"] for label in rows[4]["labels"]] == ["image_changed", "low_similarity"]


def test_each_row_has_exactly_one_outcome() -> None:
    assert count_outcomes(ledger_table(TABLE, LABELS, ENDS)) == {
        "kept": 1,
        "dropped/find_mentions/no_mention": 1,
        "dropped/deduplicate/duplicate_image": 1,
        "dropped/select_labels/no_entity": 1,
        "failed/write_shards/image_changed": 1,
    }
    assert kept_rows(5, LABELS, ENDS).tolist() == [True, False, False, False, False]


def test_provenance_has_the_mention_and_all_its_candidates() -> None:
    kept = sorted_by_entity(LABELS, np.nonzero(ENDS == End.KEPT)[0])
    table = provenance_table(TABLE, LABELS, kept, np.array([5, 0]))
    assert table.schema.equals(PROVENANCE_SCHEMA)
    first, second = table.to_pylist()
    assert (first["image_id"], first["entity_id"], first["class_id"], first["surface"]) == ("a", "E1", 5, "one")
    assert (second["entity_id"], second["class_id"], second["surface"], second["start"]) == ("E2", 0, "two", 1)
    assert [one["entity_id"] for one in second["candidates"]] == ["E2", "E9"] and second["similarity"] == 0.5
    # Of a row behind one without mentions.
    (third,) = provenance_table(TABLE, LABELS, np.array([3]), np.array([1])).to_pylist()
    assert (third["image_id"], third["entity_id"], third["candidates"][0]["entity_id"]) == ("b", "E1", "E1")


def test_a_unit_without_rows_has_empty_tables() -> None:
    table = annotations()
    labels = labels_of_annotations(table)
    nothing = np.zeros(0, np.int64)
    assert len(ledger_table(table, labels, nothing.astype(np.int8))) == 0
    assert len(provenance_table(table, labels, nothing, nothing)) == 0


def test_a_table_is_written_compressed_and_its_size_returned(tmp_path: Path) -> None:
    table = ledger_table(TABLE, LABELS, ENDS)
    path = tmp_path / "ledger.parquet"
    assert write_table(str(path), table) == path.stat().st_size
    assert pq.read_table(path).equals(table)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
