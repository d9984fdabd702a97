"""Picks the linked entities that become labels: likely links, whose text suits the picture (the CLIP filter)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection
from apache_beam.transforms import combiners

from pipeline.config import SelectLabelsConfig
from pipeline.row_stage import Split
from pipeline.storage.annotation_format import EntityLabel, LabelRejection

STAGE = "select_labels"
_BINS_PER_UNIT = 10_000  # thresholds by share are exact to 1e-4 of cosine
_NUM_BINS = 2 * _BINS_PER_UNIT + 1


def labels_of_record(record: dict[str, Any]) -> list[EntityLabel]:
    """Returns one label for each entity chosen in an annotated row, by the likeliest of its mentions."""
    if record["outcome"] != "annotated":
        return []
    best: dict[str, EntityLabel] = {}
    for position, linked in enumerate(record["linked"]):
        entity_id = linked["chosen"]
        if entity_id is None:
            continue
        candidate: dict[str, Any] = next((one for one in linked["candidates"] if one["entity_id"] == entity_id), {})
        label = EntityLabel(
            shard=record["shard"],
            row=record["row"],
            image_id=record["image_id"],
            image_sha256=record["image_sha256"],
            entity_id=entity_id,
            mention=position,
            probability=linked["probability"],
            similarity=candidate.get("similarity"),
            verifier_score=candidate.get("verifier_score"),
        )
        if entity_id not in best or label.probability > best[entity_id].probability:
            best[entity_id] = label
    return list(best.values())


def select_by_probability(label: EntityLabel, *, min_probability: float) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the label if its link is at least as likely as `min_probability`, else its rejection."""
    if label.probability >= min_probability:
        yield label
    else:
        yield LabelRejection(label=label, stage=STAGE, reason="low_probability")


def select_by_verifier(label: EntityLabel, *, min_score: float) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the label if its verifier's score is at least `min_score`, else its rejection."""
    if label.verifier_score is not None and label.verifier_score >= min_score:
        yield label
    else:
        yield LabelRejection(label=label, stage=STAGE, reason="low_verifier_score")


def select_by_similarity(
    label: EntityLabel, min_similarity: float, cutoffs: Mapping[str, float]
) -> Iterator[EntityLabel | LabelRejection]:
    """Returns the label of a likely link if its text suits the picture, else its rejection.

    Args:
        label: the label.
        min_similarity: least cosine for all entities.
        cutoffs: entity id -> least cosine for it, if that is lower.
    """
    if label.similarity is None:
        yield LabelRejection(label=label, stage=STAGE, reason="not_scored")
    elif label.similarity < min(min_similarity, cutoffs.get(label.entity_id, math.inf)):
        yield LabelRejection(label=label, stage=STAGE, reason="low_similarity")
    else:
        yield label


class SimilarityQuantile(beam.CombineFn):
    """Combines cosines into the largest multiple of 1e-4 that at least `keep_share` of them reach; -1 of none."""

    def __init__(self, keep_share: float):
        self._keep_share = keep_share

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(_NUM_BINS, np.int64)

    def add_input(self, accumulator: np.ndarray, similarity: float) -> np.ndarray:
        # The small addend keeps 0.3 (2999.999… bins) in the bin that starts at 0.3.
        position = math.floor((similarity + 1) * _BINS_PER_UNIT + 1e-6)
        accumulator[min(max(position, 0), _NUM_BINS - 1)] += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator: np.ndarray) -> float:
        total = int(accumulator.sum())
        if total == 0:
            return -1.0
        reached = np.cumsum(accumulator[::-1])[::-1]  # labels in this bin and above
        position = int(np.nonzero(reached >= self._keep_share * total)[0][-1])
        return position / _BINS_PER_UNIT - 1.0


class SelectedLabels(NamedTuple):
    """The outputs of `SelectLabels`."""

    kept: PCollection[EntityLabel]
    rejected: PCollection[LabelRejection]
    threshold: PCollection[float]  # one element: the least cosine


class SelectLabels(beam.PTransform[PCollection[EntityLabel], SelectedLabels]):
    """PCollection of EntityLabels -> `.kept` EntityLabels, `.rejected` LabelRejections and `.threshold`, one float."""

    def __init__(self, config: SelectLabelsConfig):
        super().__init__()
        self._config = config

    def expand(self, labels: PCollection[EntityLabel]) -> Any:
        """Returns the `SelectedLabels`."""
        of_probability = functools.partial(select_by_probability, min_probability=self._config.min_probability)
        likely = labels | "Probability" >> Split(of_probability, stage=STAGE, rejection=LabelRejection, is_last=False)
        verified, rejected = likely.kept, [likely.rejected]
        if self._config.min_verifier_score is not None:
            of_verifier = functools.partial(select_by_verifier, min_score=self._config.min_verifier_score)
            sure = verified | "Verifier" >> Split(of_verifier, stage=STAGE, rejection=LabelRejection, is_last=False)
            verified, rejected = sure.kept, [*rejected, sure.rejected]
        # The share to keep and the floor are of the labels that the filter judges.
        threshold = self._threshold(verified)
        similar = verified | "Similarity" >> Split(
            select_by_similarity,
            beam.pvalue.AsSingleton(threshold),
            self._cutoffs(verified),
            stage=STAGE,
            rejection=LabelRejection,
        )
        all_rejected = [*rejected, similar.rejected] | "Rejected" >> beam.Flatten()
        return SelectedLabels(kept=similar.kept, rejected=all_rejected, threshold=threshold)

    def _threshold(self, labels: PCollection[EntityLabel]) -> PCollection[float]:
        threshold: PCollection[float]
        if self._config.min_similarity is not None:
            threshold = labels.pipeline | "Threshold" >> beam.Create([self._config.min_similarity])
        else:
            threshold = (
                labels
                | "Cosines" >> beam.FlatMap(lambda label: [] if label.similarity is None else [label.similarity])
                | "Threshold" >> beam.CombineGlobally(SimilarityQuantile(self._config.keep_share))
            )
        return threshold

    def _cutoffs(self, labels: PCollection[EntityLabel]) -> Any:
        """Returns the side input entity id -> cosine of the last label that the entity's floor lets pass."""
        if not self._config.entity_floor:
            return {}
        return beam.pvalue.AsDict(
            labels
            | "ScoredByEntity"
            >> beam.FlatMap(lambda label: [] if label.similarity is None else [(label.entity_id, label.similarity)])
            | "BestOfEntity" >> combiners.Top.LargestPerKey(self._config.entity_floor)
            | "Cutoff" >> beam.MapTuple(lambda entity_id, best: (entity_id, min(best)))
        )
