"""P(link | alias): how often a string, when it occurs in a text, is a name at all."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from pipeline.kb.normalise import FOLDED
from pipeline.schema import UserError

_HALF_FREQUENCY = 1e-6  # of a word that is a name in half of its uses: once in a million words (ours)
_CASE_WEIGHT = 2.0  # of what the word's frequency says, in words counted in descriptions (ours)
_COUNT_WEIGHT = 5.0  # of what frequency and case say, in occurrences counted in texts (ours)
_PROBABILITY_MIN = 1e-4
_NUM_BUCKETS = 1 << 20
_NUMBER = 2 * _NUM_BUCKETS  # in place of a bucket: no word


class WordCase:
    """How often words are written with a capital letter, and how often small, inside the descriptions of entities."""

    def __init__(self) -> None:
        self._counts = np.zeros(_NUMBER + 1, np.uint32)  # small and capital in turn
        self._view = self._counts.data  # its numbers are read in a third of the time

    @classmethod
    def read(cls, path: str) -> WordCase:
        """Returns the counts in the file at `path`, mapped into memory."""
        found = cls.__new__(cls)
        found._counts = np.memmap(path, np.uint32, "r")
        found._view = found._counts.data
        return found

    def write(self, path: str) -> None:
        """Writes the counts."""
        self._counts.tofile(path)

    def add(self, buckets: bytes) -> None:
        """Counts what `word_case` returned for descriptions, as uint32."""
        np.add.at(self._counts, np.frombuffer(buckets, "<u4"), np.uint32(1))

    def of(self, word: str) -> tuple[int, int]:
        """Returns how often the casefolded `word` was written small, and with a capital."""
        bucket = _bucket(word)
        return self._view[bucket], self._view[bucket + 1]


def word_case(word: str) -> int:
    """Returns what `WordCase` counts for a word inside a description, as it is written.

    The first word of a description is not counted, since it may have a capital for being first.
    """
    return _NUMBER if word.isdigit() else _bucket(word.casefold()) + (not word.islower())


class LinkProbability:
    """Returns P(link | alias) of normalised names.

    Without counts of texts it is, for a name of one word w,

        p(w) = (capital + 2 q) / (capital + small + 2),    q = 1 / (1 + f / 1e-6)

    where f is the frequency of the word in running text (`wordfreq`; the highest of the languages), and `capital` and
    `small` count how it is written inside the descriptions of the base. So "his", which is frequent and small, has
    0.0003, "brazil", which is frequent and has a capital, nearly 1, and a word that no language knows 1. A name of
    several words has q for the product of their frequencies: how often they would meet by chance. Scripts without
    capital letters tell nothing by case: there q is at least 0.5.

    With counts, (linked + 5 p) / (linked + unlinked + 5).

    Args:
        languages: codes of the languages of the texts, such as "en"; those that `wordfreq` lacks count as unknown.
        word_case: the words of the descriptions.
    """

    def __init__(self, languages: Sequence[str], word_case: WordCase) -> None:
        self._frequencies = _frequencies(tuple(language.split("-")[0] for language in languages))
        self._word_case = word_case

    def __call__(self, key: str, linked: float = 0.0, unlinked: float = 0.0) -> float:
        key = key.removeprefix(FOLDED)
        words = key.split(" ")
        chance = 1.0
        for word in words:
            chance *= self._frequencies.get(word, 0.0)
        prior = 1.0 / (1.0 + chance / _HALF_FREQUENCY)
        if not key.islower():  # no letter that has a capital: the others are small in a key
            prior = max(prior, 0.5)
        elif len(words) == 1:
            small, capital = self._word_case.of(key)
            prior = (capital + _CASE_WEIGHT * prior) / (capital + small + _CASE_WEIGHT)
        if linked or unlinked:
            prior = (linked + _COUNT_WEIGHT * prior) / (linked + unlinked + _COUNT_WEIGHT)
        return max(prior, _PROBABILITY_MIN)


def check_languages(languages: Sequence[str]) -> None:
    """Checks that `languages` are codes such as "en" or "pt-br".

    Raises:
        UserError: there is none, one is no code, or one comes twice.
    """
    if not languages:
        raise UserError("--languages is empty; give codes of Wikidata's languages, such as en,fr")
    for code in languages:
        if not code or not all(part.isalnum() and part.isascii() for part in code.split("-")):
            raise UserError(f"--languages: {code!r} is not the code of a language; give codes such as en,fr,pt-br")
    if len(set(languages)) < len(languages):
        raise UserError(f"--languages: {','.join(languages)} names a language twice; name each once")


@functools.lru_cache(2)
def _frequencies(languages: tuple[str, ...]) -> dict[str, float]:
    """Returns the highest frequency of each word in any of `languages`."""
    import wordfreq  # not at the top: most of a second

    known = [language for language in languages if language in wordfreq.available_languages()]
    tables: list[dict[str, float]] = [wordfreq.get_frequency_dict(language) for language in known]
    if len(tables) == 1:
        return tables[0]  # not copied: it has hundreds of thousands of words
    found: dict[str, float] = {}
    for table in tables:
        found |= {word: frequency for word, frequency in table.items() if frequency > found.get(word, 0.0)}
    return found


def _bucket(word: str) -> int:
    return zlib.crc32(word.encode()) % _NUM_BUCKETS * 2
