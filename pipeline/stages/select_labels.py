"""Picks the linked entities that become labels: likely links, whose text suits the picture (the CLIP filter)."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, PCollection

from pipeline.config import SelectLabelsConfig
from pipeline.storage.digests import (
    DigestMap,
    block_type,
    digests,
    group_starts,
    join_blocks,
    make_block,
    split_block,
    write_digest_map,
)
from pipeline.storage.labels import End, Labels

CUTOFFS_NAME = "cutoffs.bin"
_BINS_PER_UNIT = 10_000  # thresholds by share are exact to 1e-4 of cosine
_NUM_BINS = 2 * _BINS_PER_UNIT + 1
_SCORED = block_type(("similarity", "<f8"))  # the digest is that of an entity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What the whole set says about which labels are kept."""

    min_similarity: float
    """Least cosine of picture and entity."""
    cutoffs: DigestMap | None = None
    """Digest of an entity -> cosine of the last label that its floor lets pass; None: there is no floor."""


def select_labels(labels: Labels, config: SelectLabelsConfig, selection: Selection) -> np.ndarray:
    """Returns what becomes of each label here: int8 `[n]`, values of `End`. Labels at a limit are kept."""
    least = np.full(len(labels), selection.min_similarity)
    if selection.cutoffs is not None:
        of_entity = selection.cutoffs.lookup(digests(labels.entity_ids.to_pylist()), default=np.inf)
        least = np.minimum(least, of_entity[labels.entities])
    ends = _without_similarity(labels, config)
    is_judged = ends == End.KEPT
    ends[is_judged & np.isnan(labels.similarities)] = End.NOT_SCORED
    ends[is_judged & (labels.similarities < least)] = End.LOW_SIMILARITY
    return ends


def _without_similarity(labels: Labels, config: SelectLabelsConfig) -> np.ndarray:
    ends = np.full(len(labels), End.KEPT, np.int8)
    if config.min_verifier_score is not None:
        ends[~(labels.verifier_scores >= config.min_verifier_score)] = End.LOW_VERIFIER_SCORE  # NaN is rejected too
    ends[labels.probabilities < config.min_probability] = End.LOW_PROBABILITY
    return ends


def judged_by_similarity(labels: Labels, config: SelectLabelsConfig) -> np.ndarray:
    """Returns bool `[n]`: the scored labels that nothing but the similarity can reject.

    The share to keep and the floor are of these.
    """
    is_judged: np.ndarray = (_without_similarity(labels, config) == End.KEPT) & ~np.isnan(labels.similarities)
    return is_judged


class SimilarityQuantile(beam.CombineFn):
    """Combines arrays of cosines into the largest multiple of 1e-4 that at least `keep_share` reach; -1 of none."""

    def __init__(self, keep_share: float):
        self._keep_share = keep_share

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(_NUM_BINS, np.int64)

    def add_input(self, accumulator: np.ndarray, similarities: np.ndarray) -> np.ndarray:
        # The small addend keeps 0.3 (2999.999… bins) in the bin that starts at 0.3.
        bins = np.floor((similarities + 1) * _BINS_PER_UNIT + 1e-6).astype(np.int64)
        return accumulator + np.bincount(np.clip(bins, 0, _NUM_BINS - 1), minlength=_NUM_BINS)

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator: np.ndarray) -> float:
        total = int(accumulator.sum())
        if total == 0:
            return -1.0
        reached = np.cumsum(accumulator[::-1])[::-1]  # labels in this bin and above
        position = int(np.nonzero(reached >= self._keep_share * total)[0][-1])
        return position / _BINS_PER_UNIT - 1.0


def best_of_entities(labels: Labels, is_judged: np.ndarray, number: int) -> np.ndarray:
    """Returns a block of the `number` best cosines of each entity, among the judged labels."""
    judged = np.nonzero(is_judged)[0]
    of_entity = digests(labels.entity_ids.to_pylist())[labels.entities[judged]]
    return _best(make_block(_SCORED, of_entity, similarity=labels.similarities[judged]), number)


def cutoffs_of_blocks(blocks: Iterable[bytes], number: int) -> np.ndarray:
    """Returns a block with one row per entity: the lowest of its `number` best cosines."""
    best = _best(join_blocks(blocks, _SCORED), number)
    is_last = np.append(group_starts(best)[1:], True) if len(best) else np.zeros(0, bool)
    cutoffs: np.ndarray = best[is_last]
    return cutoffs


def _best(block: np.ndarray, number: int) -> np.ndarray:
    """Returns the `number` highest rows of each entity, by entity and then by falling cosine."""
    in_order = block[np.lexsort((-block["similarity"], block["low"], block["high"]))]
    starts = np.nonzero(group_starts(in_order))[0]
    sizes = np.diff(np.append(starts, len(in_order)))
    best: np.ndarray = in_order[np.arange(len(in_order)) - np.repeat(starts, sizes) < number]
    return best


class ChooseSelection(beam.PTransform[PCollection[Any], PCollection[Selection]]):
    """PCollection of units -> one `Selection`.

    Args:
        config: thresholds, or the share that chooses one.
        labels_of: unit -> its labels.
        num_parts: partitions that the floors of entities are computed in.
        folder: where the file of cutoffs is written, if entities have a floor.
    """

    def __init__(self, config: SelectLabelsConfig, *, labels_of: Callable[[Any], Labels], num_parts: int, folder: str):
        super().__init__()
        self._config = config
        self._labels_of = labels_of
        self._num_parts = num_parts
        self._folder = folder

    def expand(self, units: PCollection[Any]) -> Any:
        """Returns the PCollection of one `Selection`."""
        threshold = self._threshold(units)
        if not self._config.entity_floor:
            return threshold | "Selection" >> beam.Map(lambda value: Selection(min_similarity=value))
        path, number = posixpath.join(self._folder, CUTOFFS_NAME), self._config.entity_floor
        return (
            units
            | "BestOfUnit" >> beam.FlatMap(self._best_of_unit)
            | "ByEntity" >> beam.GroupByKey()
            | "Cutoffs" >> beam.MapTuple(lambda _, blocks: cutoffs_of_blocks(blocks, number).tobytes())
            | "WithOneKey" >> beam.Map(_under_one_key)
            | "AllEntities" >> beam.GroupByKey()
            | "WriteCutoffs" >> beam.MapTuple(lambda _, blocks: _write_cutoffs(path, blocks))
            # No label at all makes no file: the view of none has a default.
            | "OrNone" >> beam.combiners.ToList()
            | "Selection"
            >> beam.Map(
                lambda found, value: Selection(min_similarity=value, cutoffs=found[0] if found else None),
                AsSingleton(threshold),
            )
        )

    def _threshold(self, units: PCollection[Any]) -> Any:
        if self._config.min_similarity is not None:
            return units.pipeline | "Threshold" >> beam.Create([self._config.min_similarity])
        return (
            units
            | "Cosines" >> beam.Map(self._cosines)
            | "Threshold" >> beam.CombineGlobally(SimilarityQuantile(self._config.keep_share))
        )

    def _cosines(self, unit: Any) -> Any:
        labels = self._labels_of(unit)
        return labels.similarities[judged_by_similarity(labels, self._config)]

    def _best_of_unit(self, unit: Any) -> Iterator[tuple[int, bytes]]:
        labels = self._labels_of(unit)
        best = best_of_entities(labels, judged_by_similarity(labels, self._config), self._config.entity_floor)
        yield from split_block(best, self._num_parts)


def _under_one_key(block: bytes) -> tuple[int, bytes]:
    return 0, block  # pragma: no mutate: any key will do


def _write_cutoffs(path: str, blocks: Iterable[bytes]) -> DigestMap:
    rows = join_blocks(blocks, _SCORED)
    return write_digest_map(path, np.stack([rows["high"], rows["low"]], axis=1), rows["similarity"])
