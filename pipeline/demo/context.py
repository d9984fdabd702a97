"""The words that texts say beside an entity's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex, stems_of
from pipeline.demo.selection import half_of, rank
from pipeline.kb.normalise import normalise_alias

# Words for what a brand's category deals in, for the category values of name-suggestion-index that logos have.
CATEGORY_WORDS: dict[str, tuple[str, ...]] = {
    "fuel": ("fuel", "petrol station", "gasoline", "oil"),
    "car": ("car", "automobile", "automotive", "vehicle maker"),
    "car repair": ("car", "automotive", "vehicle repair"),
    "fast food": ("fast food", "restaurant", "takeaway"),
    "restaurant": ("restaurant", "dining"),
    "cafe": ("coffeehouse", "beverages"),
    "bank": ("banking", "finance", "financial services"),
    "atm": ("banking", "cash machine", "financial services"),
    "supermarket": ("supermarket", "grocery", "retail chain"),
    "convenience": ("convenience store", "retail"),
    "clothes": ("clothing", "fashion", "apparel"),
    "shoes": ("footwear", "sportswear"),
    "sports": ("sportswear", "sporting goods"),
    "electronics": ("electronics", "technology", "consumer technology company"),
    "computer": ("computers", "technology company"),
    "mobile phone": ("mobile phones", "telecommunications", "technology company"),
    "telecommunication": ("telecommunications", "mobile network"),
    "hotel": ("hotel chain", "hospitality"),
    "parcel locker": ("parcel delivery", "logistics", "online retail"),
    "motorcycle": ("motorcycles", "motor vehicles"),
    "furniture": ("furniture store", "home furnishing"),
    "charging station": ("electric vehicle charging", "energy company"),
    "car rental": ("car rental", "vehicle hire"),
    "department store": ("department store", "retail"),
    "cosmetics": ("cosmetics", "beauty products"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """Words that show what is meant: for the kind of thing, from tags and keywords, and of WordNet's senses around."""

    categories: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    related: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.categories) + len(self.keywords) + len(self.related)


class ContextWords:
    """Says which words may stand beside a name of an entity.

    The words of an entity that shares a name are in two parts without a stem in common. Those of part 1 stand beside
    its shared names alone, so that nothing but such a text says them of the entity.
    """

    def __init__(
        self, entities: Mapping[str, CorpusEntity], kinds: Mapping[str, str], index: NameIndex, *, seed: int
    ) -> None:
        """Takes all entities, the kind of picture of each pictured one, the names of the base, and the seed."""
        self._entities, self._kinds, self._index, self._seed = entities, kinds, index, seed
        self._words: dict[str, tuple[Words, dict[str, int]]] = {}
        self._beside: dict[tuple[str, str, int | None], Words] = {}

    def beside(self, entity_id: str, name: str, part: int | None) -> Words:
        """Returns the words of the entity that may stand beside `name`, of one part (0 or 1) or of both (None)."""
        key = entity_id, normalise_alias(name), part
        if key not in self._beside:
            words, parts = self._of_entity(entity_id)
            own = set(stems_of(name)) | set(key[1].split())

            def fitting(several: Sequence[str]) -> tuple[str, ...]:
                return tuple(
                    word
                    for word in several
                    if (part is None or parts[word] == part)
                    and own.isdisjoint(stems_of(word))
                    and own.isdisjoint(normalise_alias(word).split())
                )

            self._beside[key] = Words(
                categories=fitting(words.categories), keywords=fitting(words.keywords), related=fitting(words.related)
            )
        return self._beside[key]

    def _of_entity(self, entity_id: str) -> tuple[Words, dict[str, int]]:
        if entity_id not in self._words:
            entity = self._entities[entity_id]
            categories = list(entity.categories)
            if self._kinds.get(entity_id) == "logo":
                categories += [w for t in entity.types for w in CATEGORY_WORDS.get(t, ())]
            usable = [
                context_words(words, entity_id, self._index, types=entity.types, seed=self._seed)
                for words in (categories, entity.keywords, entity.related)
            ]
            words = Words(categories=tuple(usable[0]), keywords=tuple(usable[1]), related=tuple(usable[2]))
            parts = split_in_two([w for one in usable for w in one], f"{self._seed}/{entity_id}")
            self._words[entity_id] = words, parts
        return self._words[entity_id]


def context_words(
    words: Sequence[str], entity_id: str, index: NameIndex, *, types: Sequence[str] = (), seed: int = 0
) -> list[str]:
    """Returns which of `words` may be used with the entity: those that the base holds neither as a name nor as a type.

    The name of a thing or a place would be a further mention, and a type beside an entity that has it would make
    linking a lookup; so would a phrase with a word of one of the entity's own `types`. A word that is a brand's name
    is no mention; it may be used where it is of the same half as the entity.
    """
    of_types = {stem for kind in types for stem in stems_of(kind)}
    kept: dict[str, None] = {}
    for word in words:
        word = word.strip()
        plain = 3 <= len(word) <= 24 and word.replace(" ", "").replace("-", "").isalpha() and "\xa0" not in word
        if not plain or index.is_type(word) or not of_types.isdisjoint(stems_of(word)):
            continue
        strays = index.stray_words(word)
        if strays is None or strays and not word.islower():
            continue
        if all(half_of(seed, index.name_of(word[s:e])) == half_of(seed, entity_id) for s, e in strays):
            kept[word] = None
    return list(kept)


def split_in_two(words: Sequence[str], seed: str) -> dict[str, int]:
    """Returns 0 or 1 for each word, about half of each; words with a stem in common get the same."""
    groups: dict[str, set[str]] = {}  # stem -> the stems that are tied to it
    for word in words:
        tied = set(stems_of(word)) or {word}
        for stem in list(tied):
            tied |= groups.get(stem, set())
        for stem in tied:
            groups[stem] = tied
    group_of = {word: min(groups[next(iter(stems_of(word)), word)]) for word in words}
    order = sorted(set(group_of.values()), key=lambda group: rank(seed, f"part/{group}"))
    part_of = {group: place % 2 for place, group in enumerate(order)}
    return {word: part_of[group] for word, group in group_of.items()}
