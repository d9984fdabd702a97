"""How a language uses its words: how frequent each is, and how often it has a capital letter."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import NamedTuple

import numpy as np

from pipeline.schema import UserError

_FREQUENCY_MIN = 1e-8  # of a word that is kept: of rarer ones too few occurrences were counted (ours)
_STEPS_A_DECADE = 2  # of frequency (ours)
_STEPS_OF_CAPITALS = 8  # the last one is a word that is always written with a capital (ours)


class Use(NamedTuple):
    """How often a word occurs, and how often it is not written small."""

    frequency: int  # steps of half a decade above `_FREQUENCY_MIN`
    capitals: int  # eighths


class WordUse:
    """The use of the words of a language. It is kept in 5 bytes a word, so that a tagger can carry it.

    Args:
        hashes: uint32, little-endian and ascending: one of each word, casefolded.
        uses: uint8 of each: frequency times 9, plus capitals.
    """

    def __init__(self, hashes: bytes = b"", uses: bytes = b"") -> None:
        self.hashes, self.uses = hashes, uses
        self._hashes = np.frombuffer(hashes, "<u4")

    @classmethod
    def of_language(cls, code: str) -> WordUse:
        """Returns the use of the words of a language.

        Frequencies come from `spacy-lookups-data`, which has words as they are written: "Volvo" and "volvo" apart.

        Args:
            code: of a language, such as "en".

        Raises:
            UserError: the frequencies of this language are not known.
        """
        import spacy_lookups_data

        table = spacy_lookups_data.get_file(f"{code}_lexeme_prob.json.gz")
        if not table.is_file():
            raise UserError(f"spacy-lookups-data has no frequencies of words for the language {code!r}; give another")
        logarithms: dict[str, float] = json.loads(gzip.decompress(table.read_bytes()))
        found: dict[str, tuple[float, float]] = {}  # casefolded -> all occurrences, those with a capital
        for word, logarithm in logarithms.items():
            frequency = math.exp(logarithm)
            total, capital = found.get(word.casefold(), (0.0, 0.0))
            found[word.casefold()] = total + frequency, capital + frequency * (not word.islower())
        uses = {
            _hash(word): int(_STEPS_A_DECADE * math.log10(total / _FREQUENCY_MIN)) * (_STEPS_OF_CAPITALS + 1)
            + int(_STEPS_OF_CAPITALS * capital / total)
            for word, (total, capital) in found.items()
            if total >= _FREQUENCY_MIN
        }
        hashes = np.array(sorted(uses), "<u4")
        return cls(hashes.tobytes(), bytes(uses[one] for one in hashes.tolist()))

    def of(self, word: str) -> Use | None:
        """Returns the use of `word` in any case; None if it is unknown. One unknown word in 14,000 has a known hash."""
        one = _hash(word.casefold())
        place = int(self._hashes.searchsorted(one))
        if place == len(self._hashes) or self._hashes[place] != one:
            return None
        return Use(*divmod(self.uses[place], _STEPS_OF_CAPITALS + 1))


def _hash(word: str) -> int:
    return zlib.crc32(word.encode())
