"""Annotations on disk: one Parquet file per unit, one row per input row, in the order of rows; no images."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import EVIDENCE, Candidate, LinkedMention, Rejection, Row

CANDIDATE_TYPE = pa.struct(
    [
        ("entity_id", pa.string()),
        ("prior", pa.float64()),
        ("match", pa.float64()),
        ("case", pa.string()),
        ("link_probability", pa.float64()),
        ("evidence", pa.struct([(name, pa.float64()) for name in EVIDENCE])),
        ("score", pa.float64()),
        ("similarity", pa.float64()),
        ("verifier_score", pa.float64()),
    ]
)
_ROW_GROUP_ROWS = 1024
_LINKED = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("surface", pa.string()),
        ("mention_score", pa.float64()),
        ("finder", pa.string()),
        ("outer_start", pa.int32()),
        ("outer_end", pa.int32()),
        ("chosen", pa.string()),
        ("probability", pa.float64()),
        ("by_text", pa.string()),
        ("candidates", pa.list_(CANDIDATE_TYPE)),
    ]
)
FIELDS_TYPE = pa.map_(pa.string(), pa.string())
"""What passes through from the input: name -> value."""
ANNOTATION_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_format", pa.string()),
        ("image_sha256", pa.string()),
        ("image_start_byte", pa.int64()),
        ("image_bytes", pa.int32()),
        ("perceptual_hash", pa.string()),
        ("embedding", pa.binary()),
        ("linked", pa.list_(_LINKED)),
        ("fields", FIELDS_TYPE),
    ]
)


def record_of_row(row: Row) -> dict[str, Any]:
    """Returns the annotation record of a row that passed every stage."""
    return {
        "image_id": row.pair.image_id,
        "shard": row.pair.shard,
        "row": row.pair.row,
        "text": row.pair.text,
        "outcome": "annotated",
        "stage": None,
        "reason": None,
        "width": row.width_px,
        "height": row.height_px,
        "image_format": row.image_format or None,
        "image_sha256": hashlib.sha256(row.pair.image).hexdigest(),
        "image_start_byte": row.pair.image_start_byte,
        "image_bytes": len(row.pair.image),
        "perceptual_hash": row.perceptual_hash or None,
        "embedding": row.embedding,
        "linked": _linked_records(row.linked),
        "fields": list(row.pair.fields),
    }


def record_of_rejection(rejection: Rejection) -> dict[str, Any]:
    """Returns the annotation record of a row that a stage dropped, or that failed."""
    return {
        "image_id": rejection.image_id,
        "shard": rejection.shard,
        "row": rejection.row,
        "text": rejection.text,
        "outcome": "failed" if rejection.retryable else "dropped",
        "stage": rejection.stage,
        "reason": rejection.reason,
        "width": 0,
        "height": 0,
        "image_format": None,
        "image_sha256": None,
        "image_start_byte": None,
        "image_bytes": None,
        "perceptual_hash": None,
        "embedding": None,
        "linked": _linked_records(rejection.linked),
        "fields": list(rejection.fields),
    }


def _linked_records(mentions: Sequence[LinkedMention]) -> list[dict[str, Any]]:
    return [
        {
            "start": linked.mention.start,
            "end": linked.mention.end,
            "surface": linked.mention.surface,
            "mention_score": linked.mention.score,
            "finder": linked.mention.finder,
            "outer_start": linked.mention.outer[0] if linked.mention.outer else None,
            "outer_end": linked.mention.outer[1] if linked.mention.outer else None,
            "chosen": linked.chosen,
            "probability": linked.probability,
            "by_text": linked.by_text,
            "candidates": [_candidate_record(candidate) for candidate in linked.candidates],
        }
        for linked in mentions
    ]


def _candidate_record(candidate: Candidate) -> dict[str, Any]:
    # Named one by one: `dataclasses.asdict` takes ten times as long.
    return {
        "entity_id": candidate.entity_id,
        "prior": candidate.prior,
        "match": candidate.match,
        "case": candidate.case,
        "link_probability": candidate.link_probability,
        "evidence": dict(zip(EVIDENCE, candidate.evidence, strict=True)) if candidate.evidence else None,
        "score": candidate.score,
        "similarity": candidate.similarity,
        "verifier_score": candidate.verifier_score,
    }


class AnnotationWriter:
    """Writes annotation records as they come; the bytes do not depend on how many come at a time.

    Args:
        file: open for writing; it is left open.
    """

    def __init__(self, file: Any):
        self._writer = pq.ParquetWriter(file, ANNOTATION_SCHEMA, compression="zstd")
        self._records: list[dict[str, Any]] = []
        self.num_rows = 0

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Takes `records`; a row group is written once it is full."""
        self.num_rows += len(records)
        self._records.extend(records)
        while len(self._records) >= _ROW_GROUP_ROWS:
            self._write_group(self._records[:_ROW_GROUP_ROWS])
            self._records = self._records[_ROW_GROUP_ROWS:]

    def __enter__(self) -> AnnotationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes the rest; after an error what is written does not count."""
        if error is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # the error on its way says more
                self._writer.close()
            return
        if self._records:
            self._write_group(self._records)
        self._writer.close()

    def _write_group(self, records: Sequence[dict[str, Any]]) -> None:
        self._writer.write_table(pa.Table.from_pylist(list(records), schema=ANNOTATION_SCHEMA))


def check_one_outcome_per_row(records: Sequence[dict[str, Any]], *, num_rows: int, shard: str) -> None:
    """Checks that `records`, sorted by row, are rows 0 to num_rows - 1, each once.

    Raises:
        RuntimeError: a stage lost a row, or gave it two outcomes.
    """
    rows = [record["row"] for record in records]
    if rows != list(range(num_rows)):
        lost = sorted(set(range(num_rows)) - set(rows))
        twice = sorted({row for before, row in zip(rows, rows[1:], strict=False) if before == row})
        raise RuntimeError(
            f"{shard}: {num_rows} rows were read and {len(rows)} outcomes came back; without one: {lost[:5]}, "
            f"with several: {twice[:5]}. Every stage must keep or reject each row once"
        )
