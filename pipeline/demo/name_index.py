"""The names of the base while its corpus is put together: whom a name may mean, and which names a text has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.kb.bag_of_words import split_words
from pipeline.kb.function_words import function_words
from pipeline.kb.normalise import WORD, alias_variants, normalise_alias, strip_legal_suffix

_WORDS_MAX = 7  # of a name
_NUM_FUNCTION_WORDS = 250  # the stop words among so many most frequent words; more than the linker takes for them


class NameIndex:
    """Finds the names of the base in a text."""

    def __init__(
        self, weights: Mapping[str, Mapping[str, float]], types: Iterable[str] = (), brands: Iterable[str] = ()
    ):
        """Takes the names and kinds of the base.

        Args:
            weights: normalised name -> {entity id: weight}.
            types: the words that the base has for kinds of things.
            brands: ids of companies and the like, which a common word never means.
        """
        self._weights = weights
        self._types = {stems_of(kind) for kind in types}
        self._brands = frozenset(brands)
        self._meanings: dict[str, frozenset[str]] = {}
        self._words_max = min(max((len(name.split()) for name in weights), default=1), _WORDS_MAX)

    def candidates(self, name: str) -> list[str]:
        """Returns the ids of the entities with this `name`, by falling weight, ties by id."""
        found: dict[str, float] = {}
        key = normalise_alias(name)
        for variant in (key, strip_legal_suffix(key)):
            for entity_id, weight in self._weights.get(variant, {}).items():
                found[entity_id] = max(weight, found.get(entity_id, 0.0))
        return sorted(found, key=lambda i: (-found[i], i))

    def meanings(self, text: str) -> frozenset[str]:
        """Returns the ids of the entities that `text` may name, perhaps in the plural or with an article."""
        if text not in self._meanings:
            key = normalise_alias(text)
            ids = {i for variant in (key, *alias_variants(key)) for i in self._weights.get(variant, {})}
            self._meanings[text] = frozenset(ids)
        return self._meanings[text]

    def name_of(self, text: str) -> str:
        """Returns the name, as normalised, that `text` has in the base, perhaps without article or plural."""
        key = normalise_alias(text)
        return next((variant for variant in (key, *alias_variants(key)) if variant in self._weights), key)

    def is_type(self, text: str) -> bool:
        """Returns whether the base has `text` as a kind of thing, in singular or plural."""
        return stems_of(text) in self._types

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the spans of names, leftmost and longest first, none overlapping."""
        words = [m.span() for m in WORD.finditer(text)]
        found, at = [], 0
        while at < len(words):
            for last in range(min(at + self._words_max, len(words)) - 1, at - 1, -1):
                start, end = words[at][0], words[last][1]
                if not text[start:end].isdigit() and self.meanings(text[start:end]):
                    found.append((start, end))
                    at = last
                    break
            at += 1
        return found

    def stray_words(self, text: str) -> list[tuple[int, int]] | None:
        """Returns the spans of brands' names in a text that uses them as common words.

        Args:
            text: of common words alone, so that no brand is meant.

        Returns:
            The spans, without function words; None where a name may mean something else than a brand.
        """
        found = [(s, e) for s, e in self.spans(text) if not _of_function_words(text[s:e])]
        if any(not self.meanings(text[s:e]) <= self._brands for s, e in found):
            return None
        return found


def _of_function_words(text: str) -> bool:
    words = [word.casefold() for word in WORD.findall(text)]
    return all(word in function_words("en", _NUM_FUNCTION_WORDS) or len(word) == 1 for word in words)


def stems_of(text: str) -> tuple[str, ...]:
    """Returns the words of `text` without endings, in order."""
    return tuple(split_words(text))
