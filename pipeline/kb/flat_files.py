"""Arrays of the knowledge base as flat little-endian files, memory-mapped, so that all processes share their pages."""

from __future__ import annotations

import mmap
import os
from typing import Any, cast

# Name -> type of its numbers. Places of `X.offsets` are [start, end) of one row of X; there is one more than rows.
FLAT_FILES = {
    "entities": "B",  # records, by ordinal: see `pipeline.kb.records`
    "entities.offsets": "Q",
    "numbers": "I",  # of the ids Q<number>, rising: their place is their ordinal
    "other_ids": "B",  # all other ids, rising; their ordinals follow
    "other_ids.offsets": "Q",
    "words": "I",  # by ordinal: the number of words of the label, these words, the other own words
    "words.offsets": "Q",
    "buckets": "I",  # of words that documents hold, rising
    "rarities": "f",  # by place in `buckets`: inverse document frequencies, in nats
}
ITEM_BYTES = {"B": 1, "I": 4, "Q": 8, "f": 4}


def map_file(folder: str, name: str) -> memoryview[Any]:
    """Returns the numbers of the file `name` of `FLAT_FILES`, read-only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is cut off.
    """
    with open(os.path.join(folder, name), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes % ITEM_BYTES[FLAT_FILES[name]]:
            raise ValueError(f"{name} has {size_bytes} bytes, which is no whole number of values")
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_bytes else b"")
    return content.cast(cast(Any, FLAT_FILES[name]))
