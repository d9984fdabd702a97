"""Picks the linked entities that become labels: those of sure links, whose text suits the picture (the CLIP filter)."""

from __future__ import annotations

import math
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from pipeline.config import SelectLabelsConfig
from pipeline.storage.annotation_format import EntityLabel, LabelRejection

STAGE = "select_labels"
_BINS_PER_UNIT = 10_000  # thresholds by share are exact to 1e-4 of cosine
_NUM_BINS = 2 * _BINS_PER_UNIT + 1


def labels_of_record(record: dict[str, Any]) -> list[EntityLabel]:
    """Returns one label for each entity chosen in an annotated row; of several mentions of it, the likeliest."""
    if record["outcome"] != "annotated":
        return []
    best: dict[str, EntityLabel] = {}
    for position, linked in enumerate(record["linked"]):
        entity_id = linked["chosen"]
        if entity_id is None:
            continue
        similarity = next((c["similarity"] for c in linked["candidates"] if c["entity_id"] == entity_id), None)
        label = EntityLabel(
            shard=record["shard"],
            row=record["row"],
            image_id=record["image_id"],
            image_sha256=record["image_sha256"],
            entity_id=entity_id,
            mention=position,
            probability=linked["probability"],
            similarity=similarity,
        )
        if entity_id not in best or label.probability > best[entity_id].probability:
            best[entity_id] = label
    return list(best.values())


def rejection_reason(label: EntityLabel, *, min_similarity: float, entity_cutoff: float) -> str | None:
    """Returns why a label of a sure link falls, or None if it stays.

    Args:
        label: the label.
        min_similarity: least cosine for all entities.
        entity_cutoff: cosine of the last of the entity's labels that its floor lets pass; infinite without a floor.
    """
    if label.similarity is None:
        return "not_scored"
    return "low_similarity" if label.similarity < min(min_similarity, entity_cutoff) else None


class SimilarityQuantile(beam.CombineFn):
    """Combines cosines into the largest multiple of 1e-4 that at least `keep_share` of them reach; -1 of none."""

    def __init__(self, keep_share: float):
        self._keep_share = keep_share

    def create_accumulator(self):  # type: ignore[no-untyped-def]
        return np.zeros(_NUM_BINS, np.int64)

    def add_input(self, accumulator, similarity):  # type: ignore[no-untyped-def]
        # The small addend keeps 0.3 (2999.999… bins) in the bin that starts at 0.3.
        position = math.floor((similarity + 1) * _BINS_PER_UNIT + 1e-6)
        accumulator[min(max(position, 0), _NUM_BINS - 1)] += 1
        return accumulator

    def merge_accumulators(self, accumulators):  # type: ignore[no-untyped-def]
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator):  # type: ignore[no-untyped-def]
        total = int(accumulator.sum())
        if total == 0:
            return -1.0
        reached = np.cumsum(accumulator[::-1])[::-1]  # labels in this bin and above
        position = int(np.nonzero(reached >= self._keep_share * total)[0][-1])
        return position / _BINS_PER_UNIT - 1.0


class SelectLabels(beam.PTransform):
    """EntityLabels -> dict of `kept` EntityLabels, `rejected` LabelRejections and `threshold`, one float."""

    def __init__(self, config: SelectLabelsConfig):
        super().__init__()
        self._config = config

    def expand(self, labels):  # type: ignore[no-untyped-def]
        sure = labels | "Sure" >> beam.ParDo(_ProbabilityDoFn(self._config.min_probability)).with_outputs(
            "rejected", main="kept"
        )
        if self._config.min_similarity is None:
            threshold = (
                sure.kept
                | "Cosines" >> beam.FlatMap(lambda label: [] if label.similarity is None else [label.similarity])
                | "Threshold" >> beam.CombineGlobally(SimilarityQuantile(self._config.keep_share))
            )
        else:
            threshold = labels.pipeline | "Threshold" >> beam.Create([self._config.min_similarity])
        cutoffs: Any = {}
        if self._config.entity_floor:
            cutoffs = beam.pvalue.AsDict(
                sure.kept
                | "ScoredByEntity"
                >> beam.FlatMap(lambda label: [] if label.similarity is None else [(label.entity_id, label.similarity)])
                | "BestOfEntity" >> beam.combiners.Top.LargestPerKey(self._config.entity_floor)
                | "Cutoff" >> beam.MapTuple(lambda entity_id, best: (entity_id, min(best)))
            )
        similar = sure.kept | "Similar" >> beam.ParDo(
            _SimilarityDoFn(), beam.pvalue.AsSingleton(threshold), cutoffs
        ).with_outputs("rejected", main="kept")
        rejected = [sure.rejected, similar.rejected] | "Rejected" >> beam.Flatten()
        return {"kept": similar.kept, "rejected": rejected, "threshold": threshold}


class _ProbabilityDoFn(beam.DoFn):
    def __init__(self, min_probability: float):
        self._min_probability = min_probability

    def process(self, label):  # type: ignore[no-untyped-def]
        if label.probability >= self._min_probability:
            yield label
        else:
            yield _reject(label, "low_probability")


class _SimilarityDoFn(beam.DoFn):
    def process(self, label, threshold, cutoffs):  # type: ignore[no-untyped-def]
        cutoff = cutoffs.get(label.entity_id, math.inf)
        reason = rejection_reason(label, min_similarity=threshold, entity_cutoff=cutoff)
        if reason is None:
            Metrics.counter(STAGE, "kept").inc()
            yield label
        else:
            yield _reject(label, reason)


def _reject(label: EntityLabel, reason: str) -> beam.pvalue.TaggedOutput:
    Metrics.counter(STAGE, reason).inc()
    return beam.pvalue.TaggedOutput("rejected", LabelRejection(label=label, stage=STAGE, reason=reason))
