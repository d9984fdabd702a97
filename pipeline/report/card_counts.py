"""What a set holds, counted shard by shard: rows, labels, similarities, entities, names.

Memory grows with the number of distinct entities (some 200 bytes each), not with the number of images.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.set_files import SetFiles, check_columns, open_table
from pipeline.schema import UserError

BIN_WIDTH = 0.01  # of the histogram of similarities, which covers -1 to 1
_NUM_BINS = 200
KEPT, LOW_SIMILARITY = "kept", "low_similarity"
_ROWS_PER_BATCH = 20_000
_NAMES_MAX = 500_000
_LEDGER_COLUMNS = ("image_id", "shard", "row", "outcome", "stage", "reason", "entity_ids", "labels")
_ANNOTATION_COLUMNS = ("text", "linked")
_READ_OF_LINKED = ("surface", "chosen", "candidates.list.element.entity_id", "candidates.list.element.similarity")


class Batch(NamedTuple):
    """Rows of one input shard that follow each other, from ledger and annotations."""

    shard: str
    first_row: int
    first_position: int
    """Kept rows of the shard before this batch: the position of its first kept row in the set's shard."""
    ledger: pa.Table
    annotations: pa.Table


def read_batches(files: SetFiles, name: str) -> Iterator[Batch]:
    """Yields the rows of the input shard `name`, in order.

    Raises:
        UserError: a table is missing or damaged, or the two differ in their rows.
    """
    first_row = first_position = 0
    paths = files.ledger(name), files.annotations(name)
    with open_table(paths[0]) as ledger_file, open_table(paths[1]) as annotation_file:
        check_columns(ledger_file, paths[0], _LEDGER_COLUMNS)
        check_columns(annotation_file, paths[1], _ANNOTATION_COLUMNS)
        num_rows = [file.metadata.num_rows for file in (ledger_file, annotation_file)]
        if num_rows[0] != num_rows[1]:
            raise UserError(
                f"{paths[0]} has {num_rows[0]} rows, and {paths[1]} has {num_rows[1]}; run python -m "
                "pipeline.build_i2e again, which makes what does not fit again"
            )
        columns = ["text", *(f"linked.list.element.{field}" for field in _READ_OF_LINKED)]
        ledger_batches = ledger_file.iter_batches(_ROWS_PER_BATCH, columns=list(_LEDGER_COLUMNS))
        for part in annotation_file.iter_batches(_ROWS_PER_BATCH, columns=columns):
            ledger = pa.Table.from_batches([next(ledger_batches)])
            if len(ledger) != len(part):  # both are written in one piece, so their parts have the same sizes
                raise UserError(
                    f"{paths[0]} and {paths[1]} are cut differently; run python -m pipeline.build_i2e again"
                )
            yield Batch(name, first_row, first_position, ledger, pa.Table.from_batches([part]))
            first_row += len(part)
            first_position += pc.sum(pc.equal(ledger.column("outcome"), KEPT)).as_py() or 0


class EntityCounts:
    """Per entity: labels by what became of them, and the similarities of those that were scored."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._ends: dict[str, int] = {KEPT: 0, LOW_SIMILARITY: 1}
        self._counts = np.zeros((1024, 16), np.int64)
        self._similarities = np.zeros((1024, 2))  # number, sum

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def add(self, entity_ids: pa.Array, ends: pa.Array, similarities: np.ndarray) -> None:
        """Adds labels: their entities, what became of them (`kept` or the reason), and similarities (NaN: none)."""
        encoded_ids, encoded_ends = entity_ids.dictionary_encode(), ends.dictionary_encode()
        places = np.array([self._place.setdefault(one, len(self._place)) for one in encoded_ids.dictionary.to_pylist()])
        columns = np.array([self._ends.setdefault(one, len(self._ends)) for one in encoded_ends.dictionary.to_pylist()])
        while len(self._counts) < len(self._place):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._similarities = np.concatenate([self._similarities, np.zeros_like(self._similarities)])
        while self._counts.shape[1] < len(self._ends):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)], axis=1)
        if not len(places):
            return
        rows = places[encoded_ids.indices.to_numpy()]
        np.add.at(self._counts, (rows, columns[encoded_ends.indices.to_numpy()]), 1)
        scored = ~np.isnan(similarities)
        np.add.at(self._similarities, (rows[scored], 0), 1)
        np.add.at(self._similarities, (rows[scored], 1), similarities[scored])

    @property
    def ends(self) -> list[str]:
        """What labels became: `kept`, `low_similarity`, and the other reasons that occur."""
        return list(self._ends)

    def of(self, entity_id: str) -> dict[str, Any]:
        """Returns the counts of an entity: linked, each end, share rejected by the filter, mean similarity or None."""
        place = self._place.get(entity_id)
        counts = np.zeros(len(self._ends), np.int64) if place is None else self._counts[place]
        number, total = (0.0, 0.0) if place is None else self._similarities[place]
        linked = int(counts.sum())
        return {
            "linked": linked,
            **{end: int(counts[column]) for end, column in self._ends.items()},
            "share_rejected_by_filter": int(counts[self._ends[LOW_SIMILARITY]]) / linked if linked else 0.0,
            "mean_similarity": float(total / number) if number else None,
        }

    def most_rejected(self) -> list[str]:
        """Returns the ids of all entities, those with most labels rejected by the filter first; ties by id."""
        rejected = self._counts[:, self._ends[LOW_SIMILARITY]]
        return sorted(self._place, key=lambda one: (-rejected[self._place[one]], one))


class NameCounts:
    """Per name: how often it was linked to each entity, and how often to none. Rare names make place for new ones."""

    def __init__(self, num_names_max: int = _NAMES_MAX) -> None:
        self._counts: dict[str, collections.Counter[str | None]] = {}
        self._num_names_max = num_names_max
        self.num_forgotten = 0  # mentions of names that were dropped

    def add(self, surfaces: pa.Array, chosen: pa.Array) -> None:
        """Adds mentions that have candidates: what they say, and the entity chosen (null for none)."""
        table = pa.table({"surface": surfaces, "chosen": chosen, "one": pa.nulls(len(surfaces), pa.int8())})
        grouped = table.group_by(["surface", "chosen"]).aggregate([("one", "count", pc.CountOptions(mode="all"))])
        for surface, entity_id, count in zip(*(column.to_pylist() for column in grouped.columns), strict=True):
            name = " ".join(surface.casefold().split())
            self._counts.setdefault(name, collections.Counter())[entity_id] += count
        if len(self._counts) > self._num_names_max:
            self._forget()

    def most_ambiguous(self, number: int) -> list[tuple[str, list[tuple[str, int]], int]]:
        """Returns (name, [(entity id, links)], mentions without entity) of the most ambiguous names.

        These have most links to other than their commonest entity.
        """
        split = []
        for name, counts in self._counts.items():
            links = sorted(((one, count) for one, count in counts.items() if one is not None), key=_largest_first)
            if len(links) > 1:
                split.append((sum(count for _, count in links[1:]), name, links, counts[None]))
        split.sort(key=lambda item: (-item[0], item[1]))
        return [(name, links, num_none) for _, name, links, num_none in split[:number]]

    @property
    def num_ambiguous(self) -> int:
        """The number of names that were linked to two entities or more."""
        return sum(sum(one is not None for one in counts) > 1 for counts in self._counts.values())

    def _forget(self) -> None:
        """Drops the rarer half of the names."""
        totals = sorted((counts.total(), name) for name, counts in self._counts.items())
        for total, name in totals[: len(totals) // 2]:
            self.num_forgotten += total
            del self._counts[name]


@dataclasses.dataclass(kw_only=True)
class CardCounts:
    """All counts of a set."""

    rows: collections.Counter[tuple[str, str, str]] = dataclasses.field(default_factory=collections.Counter)
    """(outcome, stage, reason) -> rows; stage and reason are empty for kept ones."""
    entities_per_image: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Number of labels of a kept image -> images."""
    similarities: dict[str, np.ndarray] = dataclasses.field(
        default_factory=lambda: {end: np.zeros(_NUM_BINS, np.int64) for end in (KEPT, LOW_SIMILARITY, "other")}
    )
    """What became of labels -> how many have a similarity in each bin, from -1 on."""
    entities: EntityCounts = dataclasses.field(default_factory=EntityCounts)
    names: NameCounts = dataclasses.field(default_factory=NameCounts)
    num_labels: int = 0
    num_mentions: int = 0

    def add(self, batch: Batch) -> None:
        """Counts the rows of a batch."""
        ends = batch.ledger.select(["outcome", "stage", "reason"]).combine_chunks()
        grouped = ends.append_column("one", pa.nulls(len(ends), pa.int8())).group_by(ends.column_names)
        counted = grouped.aggregate([("one", "count", pc.CountOptions(mode="all"))])
        for *end, count in zip(*(column.to_pylist() for column in counted.columns), strict=True):
            outcome, stage, reason = (one or "" for one in end)
            self.rows[outcome, stage, reason] += count
        kept = pc.equal(batch.ledger.column("outcome"), KEPT)
        numbers = pc.list_value_length(batch.ledger.column("entity_ids").filter(kept)).to_pylist()
        self.entities_per_image.update(numbers)
        self._add_labels(batch)

    def _add_labels(self, batch: Batch) -> None:
        linked = _one_array(batch.annotations.column("linked"))
        mentions = pc.list_flatten(linked)
        self.num_mentions += len(mentions)
        chosen, candidates = pc.struct_field(mentions, "chosen"), pc.struct_field(mentions, "candidates")
        similarities = similarities_of_chosen(chosen, candidates)
        has_candidates = pc.greater(pc.fill_null(pc.list_value_length(candidates), 0), 0)
        surfaces = pc.struct_field(mentions, "surface")
        self.names.add(surfaces.filter(has_candidates), chosen.filter(has_candidates))

        labels = _one_array(batch.ledger.column("labels"))
        flat, rows = pc.list_flatten(labels), pc.list_parent_indices(labels).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.cumsum(lengths_of(linked))])
        of_label = similarities[starts[rows] + pc.struct_field(flat, "mention").to_numpy(zero_copy_only=False)]
        reasons = pc.fill_null(pc.struct_field(flat, "reason"), KEPT)
        self.entities.add(pc.struct_field(flat, "entity_id"), reasons, of_label)
        self.num_labels += len(flat)
        ends = np.array(reasons.to_pylist(), dtype=object)
        for end, bins in self.similarities.items():
            is_other = end not in (KEPT, LOW_SIMILARITY)
            mask = ~np.isin(ends, (KEPT, LOW_SIMILARITY)) if is_other else ends == end
            values = of_label[mask & ~np.isnan(of_label)]
            bins += np.bincount(bin_of(values), minlength=_NUM_BINS)


def bin_of(similarities: np.ndarray) -> np.ndarray:
    """Returns the bin of each similarity."""
    # The small addend keeps 0.29 (128.99999… bins) in the bin that starts at 0.29.
    return np.clip(np.floor((similarities + 1) / BIN_WIDTH + 1e-6).astype(np.int64), 0, _NUM_BINS - 1)


def similarities_of_chosen(chosen: pa.Array, candidates: pa.Array) -> np.ndarray:
    """Returns the similarity of the chosen candidate of each mention; NaN where none is chosen or scored."""
    flat, mentions = pc.list_flatten(candidates), pc.list_parent_indices(candidates)
    is_chosen = pc.fill_null(pc.equal(pc.struct_field(flat, "entity_id"), chosen.take(mentions)), False)
    values = pc.fill_null(pc.struct_field(flat, "similarity").filter(is_chosen), float("nan"))
    found = np.full(len(chosen), np.nan)
    found[mentions.filter(is_chosen).to_numpy(zero_copy_only=False)] = values.to_numpy(zero_copy_only=False)
    return found


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Returns the length of each list; 0 for null."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def _largest_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def check_counts(counts: CardCounts, manifest: Mapping[str, Any]) -> None:
    """Checks that all rows that the manifest states were counted.

    Raises:
        UserError: they differ.
    """
    if counts.rows.total() != manifest["num_rows"]:
        raise UserError(
            f"the ledger has {counts.rows.total()} rows, and manifest.json states {manifest['num_rows']}; run python "
            "-m pipeline.build_i2e again, which assembles the set again"
        )
