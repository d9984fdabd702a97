"""Texts of web style, composed from real names, tags and keywords, with the place of every name in them.

A `{name}` is the entity's, `{tags}` two to four words that describe it, `{number}` any number. The templates differ
from those that the tagger is trained on, so that the tagger is not tested on its own lessons.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.kb.bag_of_words import split_words
from pipeline.kb.normalise import WORD, alias_variants, normalise_alias, strip_legal_suffix

WITH_TAGS: dict[str, tuple[str, ...]] = {
    "emoji": (
        "{name} emoji, {tags}",
        "{name} icon | {tags}",
        "{name} clipart ({tags})",
        "Cute {name} sticker - {tags}",
        "{tags}: {name}, free vector",
        "{name} - {tags} - PNG download",
        "{name} cartoon illustration, {tags}, white background",
        "{name}. Keywords: {tags}",
    ),
    "flag": (
        "Flag of {name}, {tags}",
        "{name} flag icon | {tags}",
        "{name} - its flag, {tags}",
        "Waving flag: {name} ({tags})",
        "{tags}: flag of {name}",
        "{name} flag sticker. Keywords: {tags}",
    ),
    "logo": (
        "{name} logo, {tags}",
        "{name} logo vector | {tags}",
        "{name} brand mark ({tags})",
        "{tags}: {name} logo",
        "Official {name} logo. Keywords: {tags}",
    ),
}
WITHOUT_TAGS: dict[str, tuple[str, ...]] = {
    "emoji": (
        "{name} emoji",
        "{name} icon",
        "Cute {name} clipart",
        "{name} sticker pack",
        "Illustration of {name}, isolated on white",
        "{name} vector, SVG and PNG",
        "drawing: {name}",
    ),
    "flag": (
        "Flag of {name}",
        "{name} flag icon",
        "The flag of {name}, vector",
        "{name} flag PNG, transparent background",
        "buy {name} flag online",
    ),
    "logo": (
        "{name} logo",
        "{name} logo vector download",
        "The {name} logo, transparent PNG",
        "{name} brand icon SVG",
    ),
}
# The name alone: nothing in the text says which of its meanings applies, or even what kind of picture it is.
BARE = ("{name}", "{name} image", "{name} PNG", "Picture: {name}", "{name} (free download)", "{name}, high resolution")
FILE_NAMES = (
    "IMG_{number}.JPG",
    "DSC{number}.jpg",
    "image-{number}.png",
    "untitled-{number}.svg",
    "{number}x{number}_thumb.webp",
    "screenshot {number}-{number}.png",
    "pic{number}_final_v2.png",
    "{number}_o.gif",
)
SHOP_BOILERPLATE = (
    "Free shipping on orders over ${number}",
    "Add to basket | only {number} in stock",
    "Save up to {number}% today - shop now",
    "Product image {number} of {number}",
    "Buy 2, get 1 free! Item no. {number}",
    "In stock, ships within {number} days. 30-day returns",
    "Best price guaranteed, from ${number}.99",
    "Customers also viewed ({number})",
)
NO_ENTITY = (
    "Click to enlarge ({number})",
    "Our favourite picture of the week no. {number}",
    "See more of these below, part {number}",
    "Image may be subject to copyright {number}",
    "thumbnail {number}",
    "as described in step {number}",
    "header graphic, version {number}",
    "Read more: {number} comments",
)
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
class NamedSpan:
    """Where a text names an entity: `text[start:end]` is the name. `entity_id` is None where the base lacks it."""

    start: int
    end: int
    entity_id: str | None
    ambiguous: bool
    has_context: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """A composed text and the entities that it names."""

    text: str
    mentions: tuple[NamedSpan, ...] = ()
    tags: tuple[str, ...] = ()  # the words that show what is meant


def fill(template: str, rng: random.Random, *, name: str = "", tags: Sequence[str] = ()) -> tuple[str, int, int]:
    """Returns the filled template, and the start and end of the name in it (0, 0 where it has none)."""
    text, start, end = "", 0, 0
    for piece in re.split(r"(\{name\}|\{tags\}|\{number\})", template):
        if piece == "{name}":
            start, end = len(text), len(text) + len(name)
            text += name
        elif piece == "{tags}":
            text += ", ".join(tags)
        elif piece == "{number}":
            text += str(rng.randrange(3, 9000))
        else:
            text += piece
    return text, start, end


class NameIndex:
    """Finds the names of the base in a text: a caption must have no name beside the one that it is about."""

    def __init__(self, weights: Mapping[str, Mapping[str, float]], types: Iterable[str] = ()):
        """Takes normalised name -> {entity id: weight}, and the words that the base has for kinds of things."""
        self._weights = weights
        self._types = {_stems(kind) for kind in types}
        self._words_max = max((len(name.split()) for name in weights), default=1)

    def candidates(self, name: str) -> list[str]:
        """Returns the ids of the entities with this `name`, by falling weight, ties by id."""
        found: dict[str, float] = {}
        key = normalise_alias(name)
        for variant in (key, strip_legal_suffix(key)):
            for entity_id, weight in self._weights.get(variant, {}).items():
                found[entity_id] = max(weight, found.get(entity_id, 0.0))
        return sorted(found, key=lambda i: (-found[i], i))

    def is_type(self, text: str) -> bool:
        """Returns whether the base has `text` as a kind of thing, in singular or plural."""
        return _stems(text) in self._types

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the spans of names, leftmost and longest first, none overlapping."""
        words = [m.span() for m in WORD.finditer(text)]
        found, at = [], 0
        while at < len(words):
            for last in range(min(at + min(self._words_max, 7), len(words)) - 1, at - 1, -1):
                start, end = words[at][0], words[last][1]
                if not text[start:end].isdigit() and self._is_name(normalise_alias(text[start:end])):
                    found.append((start, end))
                    at = last
                    break
            at += 1
        return found

    def _is_name(self, key: str) -> bool:
        return key in self._weights or any(variant in self._weights for variant in alias_variants(key))


def _stems(text: str) -> tuple[str, ...]:
    return tuple(split_words(text))


def context_words(words: Sequence[str], name: str, index: NameIndex, types: Iterable[str] = ()) -> list[str]:
    """Returns which of `words` may be used with `name`: those that the base holds neither as a name nor as a type.

    A name would be a further mention, and a type beside an entity that has it would make linking a lookup; so would
    a phrase with a word of one of the entity's own `types`.
    """
    own = set(normalise_alias(name).split())
    of_types = {stem for kind in types for stem in _stems(kind)}
    kept: list[str] = []
    for word in words:
        word = word.strip()
        plain = 3 <= len(word) <= 24 and word.replace(" ", "").replace("-", "").isalpha() and "\xa0" not in word
        beside_own = bool(own & set(normalise_alias(word).split()))
        of_base = index.spans(word) or index.is_type(word) or not of_types.isdisjoint(_stems(word))
        if plain and not beside_own and not of_base and word not in kept:
            kept.append(word)
    return kept
