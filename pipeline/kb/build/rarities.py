"""How rare each word is: in how many entities' documents it occurs, those of their types and links included."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from pipeline.kb import bag_of_words
from pipeline.kb.build.flat_writer import gather_rows, read_array
from pipeline.kb.build.marshal_files import read_values

_CHUNK = 5_000  # entities at once
PlaceOf = Callable[[str], int | None]


def write_rarities(folder: str, other_references: str, place_of: PlaceOf, progress: Callable[[int], object]) -> None:
    """Writes `buckets` and `rarities` from the files of `folder`.

    Memory: 64 MB for the counts, and some thousand entities at once; labels of others are read through the map.

    Args:
        folder: of the flat files.
        other_references: a file of (ordinal, types, links) whose ids are no Q<number>, rising; see `read_values`.
        place_of: ordinal of such an id.
        progress: is called with the number of entities that are done.
    """
    words, offsets = read_array(folder, "words"), read_array(folder, "words.offsets")
    references = read_array(folder, "references")
    reference_offsets = read_array(folder, "references.offsets")
    numbers = read_array(folder, "numbers")
    counts = np.zeros(bag_of_words.NUM_BUCKETS, np.uint32)
    num_entities = len(offsets) - 1
    others = read_values(other_references)
    other = next(others, None)
    for first in range(0, num_entities, _CHUNK):
        last = min(first + _CHUNK, num_entities)
        bounds = offsets[first : last + 1].astype(np.int64)
        starts, ends = bounds[:-1] + 1, bounds[1:]
        rows = [np.repeat(np.arange(last - first), ends - starts)]
        keys = [gather_rows(words, starts, ends - starts)]
        # Labels of types and links of the form Q<number>.
        spans = reference_offsets[first : last + 1].astype(np.int64)
        row_of = np.repeat(np.arange(last - first), np.diff(spans))
        targets, found = places_of(numbers, np.asarray(references[spans[0] : spans[-1]]))
        extra_rows, extra_targets, extra_words = [], [], []
        while other is not None and other[0] < last:
            ordinal, types, links = other
            for kind in (*types, *links):
                place = place_of(kind)
                if place is not None:
                    extra_rows.append(ordinal - first)
                    extra_targets.append(place)
                elif kind in types:
                    extra_words += [(ordinal - first, word) for word in bag_of_words.hash_words([kind])]
            other = next(others, None)
        row_of = np.concatenate([row_of[found], np.array(extra_rows, np.int64)])
        targets = np.concatenate([targets[found], np.array(extra_targets, np.int64)])
        labels = offsets[targets].astype(np.int64)
        lengths = words[labels].astype(np.int64)
        rows.append(np.repeat(row_of, lengths))
        keys.append(gather_rows(words, labels + 1, lengths))
        if extra_words:
            alone = np.array(extra_words, np.int64)
            rows.append(alone[:, 0])
            keys.append(alone[:, 1])
        buckets = np.concatenate([bag_of_words.buckets_of(one) for one in keys])
        pairs = np.concatenate(rows).astype(np.uint64) << np.uint64(32) | buckets
        pairs.sort()
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
        np.add.at(counts, pairs & np.uint64(0xFFFFFFFF), np.uint32(1))
        progress(last - first)
    held = np.flatnonzero(counts)
    held.astype("<u4").tofile(os.path.join(folder, "buckets"))
    weights = bag_of_words.inverse_document_frequency(counts[held], num_entities)
    weights.astype("<f4").tofile(os.path.join(folder, "rarities"))


def places_of(numbers: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of `wanted` in the rising `numbers`, int64 `[n]`, and which of them are there."""
    if not len(numbers):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return places, numbers[places] == wanted
