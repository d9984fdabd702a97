"""Finds duplicate labels: those with the image id of an earlier row, and equal pictures with the same entity.

Units are numbered, and the first of equals is kept: that of the lowest unit, and in it that of the lowest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, PCollection

from pipeline.storage.digests import block_type, group_starts, join_blocks, make_block, split_block
from pipeline.storage.labels import End, Labels

_PLACED = block_type(("position", "<i4"))


def block_of_ids(labels: Labels, ends: np.ndarray) -> np.ndarray:
    """Returns a block of the digests of image ids: of each row with a kept label, with its position in the unit."""
    kept = np.nonzero(ends == End.KEPT)[0]
    rows, first = np.unique(labels.rows[kept], return_index=True)
    return make_block(_PLACED, labels.id_digests[kept[first]], position=rows)


def block_of_images(labels: Labels, ends: np.ndarray) -> np.ndarray:
    """Returns a block of the digests of picture and entity: of each kept label, with its position in `labels`."""
    kept = np.nonzero(ends == End.KEPT)[0]
    return make_block(_PLACED, labels.image_digests[kept], position=kept)


def find_later(blocks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yields (unit, positions, int32 as bytes) of all rows of `blocks` but the first of each digest.

    Args:
        blocks: (number of the unit, block), of one partition, in any order.
    """
    units, contents = [], []
    for unit, content in blocks:
        units.append(np.full(len(content) // _PLACED.itemsize, unit, np.int64))
        contents.append(content)
    unit_of_row, rows = np.concatenate(units), join_blocks(contents, _PLACED)
    order = np.lexsort((rows["position"], unit_of_row, rows["low"], rows["high"]))
    later = np.sort(order[~group_starts(rows[order])])
    by_unit = later[np.lexsort((rows["position"][later], unit_of_row[later]))]
    found, starts = np.unique(unit_of_row[by_unit], return_index=True)
    for unit, places in zip(found.tolist(), np.split(by_unit, starts[1:]), strict=False):
        yield unit, rows["position"][places].tobytes()


def reject_ids(ends: np.ndarray, labels: Labels, lost: Iterable[bytes]) -> None:
    """Sets the ends of kept labels in rows that `find_later` returned for blocks of ids."""
    rows = np.frombuffer(b"".join(lost), "<i4")
    ends[(ends == End.KEPT) & np.isin(labels.rows, rows)] = End.DUPLICATE_ID


def reject_images(ends: np.ndarray, lost: Iterable[bytes]) -> None:
    """Sets the ends of the labels that `find_later` returned for blocks of images."""
    ends[np.frombuffer(b"".join(lost), "<i4")] = End.DUPLICATE_IMAGE


class FindDuplicates(beam.PTransform[PCollection[tuple[int, Any]], PCollection[tuple[int, bytes]]]):
    """PCollection of (number of a unit, what is known of it) -> (number of a unit, positions of later duplicates).

    Digests are shuffled, never ids or pictures; units without duplicates have no element.

    Args:
        block_of: `block_of_ids` or `block_of_images`.
        judge: what is known of a unit, and the side input -> its labels and their ends so far.
        side_input: a PCollection of one element for `judge`.
        num_parts: partitions; the result does not depend on it.
    """

    def __init__(
        self,
        block_of: Callable[[Labels, np.ndarray], np.ndarray],
        *,
        judge: Callable[[Any, Any], tuple[Labels, np.ndarray]],
        side_input: PCollection[Any],
        num_parts: int,
    ):
        super().__init__()
        self._block_of = block_of
        self._judge = judge
        self._side_input = side_input
        self._num_parts = num_parts

    def expand(self, units: PCollection[tuple[int, Any]]) -> Any:
        """Returns the PCollection of duplicates."""
        return (
            units
            | "Blocks"
            >> beam.FlatMap(self._blocks, AsSingleton(self._side_input)).with_output_types(
                tuple[int, tuple[int, bytes]]
            )
            | "ByDigest" >> beam.GroupByKey()
            | "FindLater"
            >> beam.FlatMapTuple(lambda _, blocks: find_later(blocks)).with_output_types(tuple[int, bytes])
        )

    def _blocks(self, unit: tuple[int, Any], side_input: Any) -> Iterator[tuple[int, tuple[int, bytes]]]:
        number, known = unit
        labels, ends = self._judge(known, side_input)
        for part, rows in split_block(self._block_of(labels, ends), self._num_parts):
            yield part, (number, rows)
