"""Entity ids and their ordinals: ids Q<number> come first, by number, then the others."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable

from pipeline.kb.flat_files import map_file
from pipeline.kb.records import item_number

ORDINAL = struct.Struct("<I")
ID_BYTES_MAX = 500  # ids are keys of LMDB, whose limit is 511


class EntityIds:
    """The ids of a base.

    Args:
        folder: of the flat files.
        get: the bytes of an id that is no Q<number> -> its ordinal as `ORDINAL`, None for an unknown one.
    """

    def __init__(self, folder: str, get: Callable[[bytes], bytes | None]) -> None:
        self._numbers = map_file(folder, "numbers")
        self._num_numbers = len(self._numbers)
        self._others = map_file(folder, "other_ids")
        self._other_offsets = map_file(folder, "other_ids.offsets")
        self._get = get

    def __len__(self) -> int:
        return self._num_numbers + len(self._other_offsets) - 1

    def ordinal(self, entity_id: int | str) -> int | None:
        """Returns the ordinal of an id, or of Qn given as the number n; None for an unknown one."""
        number = entity_id if isinstance(entity_id, int) else item_number(entity_id)
        if number is None:
            key = str(entity_id).encode()
            value = self._get(key) if 0 < len(key) <= ID_BYTES_MAX else None
            return None if value is None else int(ORDINAL.unpack(value)[0])
        place = bisect.bisect_left(self._numbers, number)
        return place if place < self._num_numbers and self._numbers[place] == number else None

    def id(self, ordinal: int) -> str:
        """Returns the id of the entity `ordinal`."""
        if ordinal < self._num_numbers:
            return f"Q{self._numbers[ordinal]}"
        other = ordinal - self._num_numbers
        return bytes(self._others[self._other_offsets[other] : self._other_offsets[other + 1]]).decode()
