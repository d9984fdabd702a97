"""Joins labels with their pictures, read again from the input, and writes a shard, its ledger and its provenance."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection

from pipeline.config import DEFAULT_MEMBERS, MembersConfig
from pipeline.schema import ImageText, LabelledImage, Rejection, UserError
from pipeline.shard_format import ShardWriter
from pipeline.sources.read import read_shard
from pipeline.storage.annotation_format import (
    EntityLabel,
    LabelRejection,
    check_one_outcome_per_row,
    read_parquet,
    write_parquet,
)
from pipeline.storage.commits import commit, read_commit

STAGE = "write_shards"
# A row without labels ended at the stage that its best label reached.
_STAGE_ORDER = ("select_labels", "deduplicate", "build_vocabulary")
_REASON_ORDER = (
    "low_probability", "low_verifier_score", "not_scored", "low_similarity", "duplicate_id", "duplicate_image",
    "rare_entity",
)  # fmt: skip

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
        ("candidates", pa.string()),
        ("similarity", pa.float64()),
        ("threshold", pa.float64()),
        ("kb_hash", pa.string()),
        ("ner_model_hash", pa.string()),
        ("encoder_hash", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Where a shard comes from and goes to."""

    input_path: str
    annotation_path: str
    shard_path: str
    ledger_path: str
    provenance_path: str


def row_outcome(
    record: Mapping[str, Any], labels: Iterable[EntityLabel], rejections: Iterable[LabelRejection]
) -> tuple[str, str | None, str | None]:
    """Returns (outcome, stage, reason) of an input row: kept, or what ended it."""
    if record["outcome"] != "annotated":
        return record["outcome"], record["stage"], record["reason"]
    if any(True for _ in labels):
        return "kept", None, None
    last = max(
        rejections,
        key=lambda item: (_STAGE_ORDER.index(item.stage), _REASON_ORDER.index(item.reason)),
        default=None,
    )
    return ("dropped", last.stage, last.reason) if last else ("dropped", "select_labels", "no_entity")


class WriteShards(beam.PTransform[dict[str, PCollection[Any]], PCollection[None]]):
    """Dict of `tasks` (name, ShardTask), `labels` (EntityLabel, class id), `rejections` -> files, one set per task.

    Each shard's commit record holds the counts that the manifest sums up. The threshold, a PCollection of one float,
    goes to the provenance. Rows are counted by their outcome: kept, dropped or failed.
    """

    def __init__(
        self, *, threshold: PCollection[float], hashes: Mapping[str, str], members: MembersConfig = DEFAULT_MEMBERS
    ):
        super().__init__()
        self._members = members
        self._threshold = threshold
        self._hashes = dict(hashes)

    def expand(self, parts: Any) -> Any:
        return (
            {
                "tasks": parts["tasks"],
                "labels": parts["labels"] | "LabelsByShard" >> beam.Map(lambda item: (item[0].shard, item)),
                "rejections": parts["rejections"]
                | "RejectionsByShard" >> beam.Map(lambda item: (item.label.shard, item)),
            }
            | "Join" >> beam.CoGroupByKey()
            | "Write" >> beam.ParDo(_WriteDoFn(self._hashes, self._members), beam.pvalue.AsSingleton(self._threshold))
        )


class _WriteDoFn(beam.DoFn):
    def __init__(self, hashes: dict[str, str], members: MembersConfig):
        self._hashes = hashes
        self._members = members

    def process(self, element: tuple[str, dict[str, Any]], threshold: float) -> None:
        _, parts = element
        (task,) = parts["tasks"]
        labels: dict[int, list[tuple[EntityLabel, int]]] = collections.defaultdict(list)
        for label, class_id in parts["labels"]:
            labels[label.row].append((label, class_id))
        rejections: dict[int, list[LabelRejection]] = collections.defaultdict(list)
        for rejection in parts["rejections"]:
            rejections[rejection.label.row].append(rejection)

        annotated = read_commit(task.annotation_path)
        if annotated is None:
            raise UserError(f"{task.annotation_path} was changed since it was committed; run again to replace it")
        records = read_parquet(task.annotation_path)
        # The ledger below has a row per record: the number of records must be that of the rows that were read.
        check_one_outcome_per_row(records, num_rows=annotated["num_rows"], shard=task.input_path)
        ledger, provenance = [], []
        with ShardWriter(task.shard_path) as writer:
            # The input is read again, along with its annotations; both are in the order of rows.
            for record, pair in zip(records, read_shard(task.input_path, config=self._members), strict=True):
                row_labels = sorted(labels[record["row"]], key=lambda item: item[0].entity_id)
                outcome, stage, reason = row_outcome(
                    record, [label for label, _ in row_labels], rejections[record["row"]]
                )
                changed: list[LabelRejection] = []
                if outcome == "kept" and not _is_same_image(pair, record):
                    outcome, stage, reason = "failed", STAGE, "image_changed"
                    changed = [LabelRejection(label=label, stage=STAGE, reason=reason) for label, _ in row_labels]
                    row_labels = []
                if outcome == "kept":
                    writer.write(_labelled_image(pair, record, row_labels))
                    provenance += [self._provenance(record, *item, threshold) for item in row_labels]
                Metrics.counter(STAGE, outcome).inc()
                ledger.append(
                    {
                        "image_id": record["image_id"],
                        "shard": record["shard"],
                        "row": record["row"],
                        "outcome": outcome,
                        "stage": stage,
                        "reason": reason,
                        "entity_ids": [label.entity_id for label, _ in row_labels],
                        "labels": _label_ends(
                            [label for label, _ in row_labels], [*rejections[record["row"]], *changed]
                        ),
                    }
                )
        write_parquet(task.ledger_path, ledger, LEDGER_SCHEMA)
        write_parquet(task.provenance_path, provenance, PROVENANCE_SCHEMA)
        ends = collections.Counter(
            "/".join(filter(None, (row["outcome"], row["stage"], row["reason"]))) for row in ledger
        )
        commit(
            task.shard_path,
            {
                "num_records": ends["kept"],
                "num_rows": annotated["num_rows"],
                "num_labels": len(provenance),
                "outcomes": dict(ends),
                "threshold": threshold,
            },
        )

    def _provenance(
        self, record: Mapping[str, Any], label: EntityLabel, class_id: int, threshold: float
    ) -> dict[str, Any]:
        linked = record["linked"][label.mention]
        return {
            "image_id": label.image_id,
            "entity_id": label.entity_id,
            "class_id": class_id,
            "start": linked["start"],
            "end": linked["end"],
            "surface": linked["surface"],
            "finder": linked["finder"],
            "mention_score": linked["mention_score"],
            "probability": linked["probability"],
            "candidates": json.dumps(linked["candidates"], sort_keys=True),
            "similarity": label.similarity,
            "threshold": threshold,
            "kb_hash": self._hashes["kb"],
            "ner_model_hash": self._hashes["ner_model"],
            "encoder_hash": self._hashes["encoder"],
        }


def _label_ends(kept: Iterable[EntityLabel], rejections: Iterable[LabelRejection]) -> list[dict[str, Any]]:
    """Returns what became of each label of a row, in the order of its mentions."""
    ends = [(label, None, None) for label in kept] + [(item.label, item.stage, item.reason) for item in rejections]
    return [
        {"entity_id": label.entity_id, "mention": label.mention, "stage": stage, "reason": reason}
        for label, stage, reason in sorted(ends, key=lambda end: end[0].mention)
    ]


def _is_same_image(pair: ImageText | Rejection, record: Mapping[str, Any]) -> bool:
    return isinstance(pair, ImageText) and hashlib.sha256(pair.image).hexdigest() == record["image_sha256"]


def _labelled_image(pair: Any, record: Mapping[str, Any], labels: Iterable[tuple[EntityLabel, int]]) -> LabelledImage:
    labels = list(labels)
    return LabelledImage(
        image=pair.image,
        image_id=pair.image_id,
        text=pair.text,
        width_px=record["width"],
        height_px=record["height"],
        entity_ids=tuple(label.entity_id for label, _ in labels),
        class_ids=tuple(class_id for _, class_id in labels),
        similarities=tuple(float(label.similarity or 0.0) for label, _ in labels),
    )
