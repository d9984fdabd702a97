"""Takes away labels that say the same twice: an image id of an earlier row, or equal bytes with the same entity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.storage.annotation_format import EntityLabel, LabelRejection

STAGE = "deduplicate"


def split_same_id(labels: Iterable[EntityLabel]) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the labels of one image id: those of its first row stay, those of later rows fall.

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
    """Returns the labels of one picture and entity: that of the lowest image id stays, the others fall.

    One label is in memory: the same bytes with the same entity may come millions of times.
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


class Deduplicate(beam.PTransform):
    """PCollection of EntityLabels -> dict of `kept` EntityLabels and `rejected` LabelRejections.

    Ids and hashes are shuffled, never pictures.
    """

    def expand(self, labels):  # type: ignore[no-untyped-def]
        by_id = labels | "SameId" >> _Split(lambda label: label.image_id, split_same_id)
        by_image = by_id.kept | "SameImage" >> _Split(
            lambda label: (label.image_sha256, label.entity_id), split_same_image
        )
        rejected = [by_id.rejected, by_image.rejected] | "Rejected" >> beam.Flatten()
        return {"kept": by_image.kept, "rejected": rejected}


class _Split(beam.PTransform):
    def __init__(
        self,
        key: Callable[[EntityLabel], Any],
        split: Callable[[Iterable[EntityLabel]], Iterator[EntityLabel | LabelRejection]],
    ):
        super().__init__()
        self._key = key
        self._split = split

    def expand(self, labels):  # type: ignore[no-untyped-def]
        return (
            labels | beam.GroupBy(self._key) | beam.ParDo(_SplitDoFn(self._split)).with_outputs("rejected", main="kept")
        )


class _SplitDoFn(beam.DoFn):
    def __init__(self, split: Callable[[Iterable[EntityLabel]], Iterator[EntityLabel | LabelRejection]]):
        self._split = split

    def process(self, element):  # type: ignore[no-untyped-def]
        _, labels = element
        for item in self._split(labels):
            if isinstance(item, LabelRejection):
                Metrics.counter(STAGE, item.reason).inc()
                yield beam.pvalue.TaggedOutput("rejected", item)
            else:
                Metrics.counter(STAGE, "kept").inc()
                yield item
