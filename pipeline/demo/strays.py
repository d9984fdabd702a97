"""Phrases with names of the base that mean none of its entities: common words that brands bear, parts of longer names.

They come from WordNet's example phrases, from its usual words, and from the names of people, places and products that
the base lacks (WordNet, simple-icons, world-countries).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.demo import templates
from pipeline.demo.captions import Piece, Role, fill
from pipeline.demo.name_index import NameIndex
from pipeline.demo.packages import Packages
from pipeline.demo.selection import HALVES, half_of
from pipeline.demo.senses import lexicographer_file_of

SOURCES: dict[str, float] = {"example": 0.3, "word": 0.25, "longer_name": 0.45}  # shares of the stray phrases
_WORDS_MAX = 7  # of an example
_CHARS_MAX = 45
_NAME_CHARS_MAX = 30
_KINDS = {"person": "person", "location": "place", "object": "place"}  # of WordNet's named individuals


class Strays:
    """Draws stray phrases, for each half of the pairs those of its own names."""

    def __init__(self, packages: Packages, index: NameIndex, *, seed: int):
        """Takes the packages, the names of the base, and the seed that decides the half of a name."""
        self._index, self._seed = index, seed
        examples: dict[str, list[list[Piece]]] = {half: [] for half in HALVES}
        for phrase in packages.examples:
            pieces = self._example(phrase)
            if half := self._half(pieces):
                examples[half].append(pieces)
        words: dict[str, list[tuple[str, str]]] = {half: [] for half in HALVES}
        for part, several in packages.usual_words.items():
            for word in several:
                if len(word) > 3 and index.stray_words(word):
                    words[half_of(seed, index.name_of(word))].append((part, word))
        names: dict[str, list[tuple[str, str]]] = {half: [] for half in HALVES}
        for kind, name in self._longer_names(packages):
            names[half_of(seed, index.name_of(self._known_part(name)))].append((kind, name))
        self._examples, self._words, self._names = examples, words, names

    def draw(self, half: str, rng: random.Random) -> list[Piece]:
        """Returns the pieces of a phrase for the pairs of `half`; [] where the packages have none."""
        pools: dict[str, Sequence[object]] = {
            "example": self._examples[half],
            "word": self._words[half],
            "longer_name": self._names[half],
        }
        shares = [share if pools[source] else 0.0 for source, share in SOURCES.items()]
        if not any(shares):
            return []
        source = rng.choices(list(SOURCES), shares)[0]
        if source == "example":
            return rng.choice(self._examples[half])
        kind, name = rng.choice(self._words[half] if source == "word" else self._names[half])
        role: Role = "stray_word" if source == "word" else "stray_part"
        table = {"noun": templates.STRAY_NOUNS, "adjective": templates.STRAY_ADJECTIVES}
        phrases = table[kind] if source == "word" else templates.STRAY_LONGER_NAMES[kind]
        return fill(rng.choice(phrases), rng, parts={"stray": [Piece(text=name, role=role)]})

    def counts(self) -> dict[str, int]:
        """Returns how many phrases and names there are of each source."""
        return {
            "examples": sum(map(len, self._examples.values())),
            "words": sum(map(len, self._words.values())),
            "longer_names": sum(map(len, self._names.values())),
        }

    def _example(self, phrase: str) -> list[Piece]:
        """Returns the pieces of an example with brands' names as common words, [] where it has none, or others too."""
        usual = len(phrase) <= _CHARS_MAX and 2 <= len(phrase.split()) <= _WORDS_MAX and phrase[0].isalpha()
        if not usual or re.search(r"[^\w ,'-]", phrase) or re.search(r"(?<!^)[A-Z]", phrase):
            return []
        spans = self._index.stray_words(phrase)
        return cut_out(phrase, spans, "stray_word") if spans else []

    def _half(self, pieces: Sequence[Piece]) -> str:
        """Returns the half of all stray names in `pieces`, "" where they are of both or there are none."""
        halves = {half_of(self._seed, self._index.name_of(p.text)) for p in pieces if p.role != "text"}
        return halves.pop() if len(halves) == 1 else ""

    def _longer_names(self, packages: Packages) -> Iterator[tuple[str, str]]:
        """Returns (kind, name) of what the base lacks while it has a part of the name."""
        for synset in packages.synsets.values():
            kind = _KINDS.get(lexicographer_file_of(synset))
            # "Kingdom of Norway": the base has it as Norway.
            is_known = any(self._index.candidates(lemma) for lemma in synset.lemmas)
            if synset.is_instance and kind and not is_known and not packages.is_offensive(synset.gloss):
                yield from ((kind, lemma) for lemma in synset.lemmas if self._known_part(lemma))
        for country in packages.countries.values():
            yield from (("place", city) for city in country.get("capital", []) if self._known_part(city))
        for icon in packages.json("simple-icons/data/simple-icons.json"):
            if self._known_part(icon["title"]):
                yield "other", icon["title"]

    def _known_part(self, name: str) -> str:
        """Returns the first brand or place in a name of several capitalised words that the base lacks, else ""."""
        words = name.split()
        if len(words) < 2 or len(name) > _NAME_CHARS_MAX or re.search(r"[^\w '&-]", name):
            return ""
        if not all(w[:1].isupper() or w in ("of", "the", "and", "de", "la") for w in words):
            return ""
        if self._index.meanings(name):
            return ""
        parts = [name[start:end] for start, end in self._index.spans(name) if end - start >= 3]
        named = (p for p in parts if p[:1].isupper() and any(i.startswith("Q") for i in self._index.meanings(p)))
        return next(named, "")


def cut_out(phrase: str, spans: Iterable[tuple[int, int]], role: Role) -> list[Piece]:
    """Returns `phrase` in pieces, `spans` (in order, none overlapping) with `role`."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [Piece(text=phrase[done:start]), Piece(text=phrase[start:end], role=role)]
        done = end
    return [piece for piece in (*pieces, Piece(text=phrase[done:])) if piece.text]
