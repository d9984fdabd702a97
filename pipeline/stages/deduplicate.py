"""Removes duplicate labels: those with the image id of an earlier row, and equal pictures with the same entity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from pipeline.row_stage import Outputs, Split
from pipeline.storage.annotation_format import EntityLabel, LabelRejection

STAGE = "deduplicate"


def split_same_id(labels: Iterable[EntityLabel]) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the labels of one image id: those of its first row are kept, those of later rows rejected.

    Only the labels of the first row so far are in memory.
    """
    kept: list[EntityLabel] = []
    for label in labels:
        if kept and (label.shard, label.row) < (kept[0].shard, kept[0].row):
            yield from (LabelRejection(label=one, stage=STAGE, reason="duplicate_id") for one in kept)
            kept = []
        if not kept or (label.shard, label.row) == (kept[0].shard, kept[0].row):
            kept.append(label)
        else:
            yield LabelRejection(label=label, stage=STAGE, reason="duplicate_id")
    yield from kept


def split_same_image(labels: Iterable[EntityLabel]) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the labels of one picture and entity: that of the lowest image id is kept, the others are rejected.

    One label is in memory: the same bytes with the same entity may occur millions of times.
    """
    lowest: EntityLabel | None = None
    for label in labels:
        lower, higher = (label, lowest) if lowest is None or _place(label) < _place(lowest) else (lowest, label)
        if higher is not None:
            yield LabelRejection(label=higher, stage=STAGE, reason="duplicate_image")
        lowest = lower
    if lowest is not None:
        yield lowest


def _place(label: EntityLabel) -> tuple[str, str, int]:
    return label.image_id, label.shard, label.row


class Deduplicate(beam.PTransform[PCollection[EntityLabel], Outputs]):
    """PCollection of EntityLabels -> `.kept` EntityLabels and `.rejected` LabelRejections.

    Ids and hashes are shuffled, never pictures.
    """

    def expand(self, labels: PCollection[EntityLabel]) -> Any:
        """Returns the `Outputs`."""
        by_id = (
            labels
            | "ById" >> beam.GroupBy(lambda label: label.image_id)
            | "SameId" >> Split(_split_group(split_same_id), stage=STAGE, rejection=LabelRejection, is_last=False)
        )
        by_image = (
            by_id.kept
            | "ByImage" >> beam.GroupBy(lambda label: (label.image_sha256, label.entity_id))
            | "SameImage" >> Split(_split_group(split_same_image), stage=STAGE, rejection=LabelRejection)
        )
        rejected = [by_id.rejected, by_image.rejected] | "Rejected" >> beam.Flatten()
        return Outputs(kept=by_image.kept, rejected=rejected)


def _split_group(
    split: Callable[[Iterable[EntityLabel]], Iterator[EntityLabel | LabelRejection]],
) -> Callable[[tuple[Any, Iterable[EntityLabel]]], Iterator[EntityLabel | LabelRejection]]:
    return lambda group: split(group[1])
