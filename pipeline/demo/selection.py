"""Which entities no pair shows, and which are left out of the base; both are drawn from the seed."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping

from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex
from pipeline.demo.pictures import Picture
from pipeline.kb.normalise import normalise_alias, strip_legal_suffix

NAMES_IN_TEXTS = 6  # of one entity, the first; a country's later ones are its names in other languages
HALVES = ("fit", "measure")  # the linker's weights are fitted to one, and measured on the other
_ALIAS_WEIGHT = 0.4  # of a name that is not the label, against 1 for the label; as the base weighs them
_REMOVED_PAIRS_MIN = 5  # training pictures that a removed entity needs, so that its texts spread


def stream(seed: int, purpose: str) -> random.Random:
    """Returns a generator of its own for each purpose, so that a change in one choice does not move the others."""
    return random.Random(f"{seed}/{purpose}")


def rank(seed: int | str, text: str) -> str:
    """Returns a text that puts things in an order of chance which depends on seed and `text` alone."""
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def half_of(seed: int, text: str) -> str:
    """Returns "fit" or "measure": the half of the pairs for an entity, or for a name that means none."""
    return HALVES[int(rank(seed, f"half/{text}"), 16) % 2]


def name_weights(entities: Iterable[CorpusEntity]) -> dict[str, dict[str, float]]:
    """Returns normalised name -> {entity id: 1 + popularity, less where the name is an alias}."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for entity in entities:
        for name, share in ((entity.label, 1.0), *((a, _ALIAS_WEIGHT) for a in entity.aliases)):
            key = normalise_alias(name)
            for variant in {key, strip_legal_suffix(key)} - {""}:
                weight = (1.0 + entity.popularity) * (share if variant == key else _ALIAS_WEIGHT)
                found[variant][entity.id] = max(weight, found[variant].get(entity.id, 0.0))
    return dict(found)


def held_out_entities(pictures: Iterable[Picture], *, share: float, seed: int) -> set[str]:
    """Returns `share` of the pictured entities of each kind, chosen by a hash of seed and id."""
    by_kind: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        by_kind[picture.kind].add(picture.entity_id)
    chosen: set[str] = set()
    for _, ids in sorted(by_kind.items()):
        chosen.update(sorted(ids, key=lambda i: rank(seed, i))[: round(share * len(ids))])
    return chosen


def choose_removed(
    candidates: Mapping[str, int], entities: Mapping[str, CorpusEntity], index: NameIndex, *, count: int, seed: int
) -> dict[str, list[str]]:
    """Returns `count` entities to leave out of the base -> their names that a homonym keeps in the base.

    Args:
        candidates: pictured entity -> number of training pictures.
        entities: all entities by id.
        index: the names of all entities.
        count: how many to choose; fewer where fewer have a homonym.
        seed: of the choice.
    """
    chosen: dict[str, list[str]] = {}
    for entity_id in sorted(candidates, key=lambda i: rank(seed, f"removed/{i}")):
        if len(chosen) == count:
            break
        # Places are kept: thousands of items link to them.
        if candidates[entity_id] < _REMOVED_PAIRS_MIN or "place" in entities[entity_id].types:
            continue
        absent = {entity_id, *chosen}
        names = [n for n in entities[entity_id].names[:NAMES_IN_TEXTS] if set(index.candidates(n)) - absent]
        # Two removed entities must not be each other's only homonym.
        if names and all(set(index.candidates(n)) - absent for earlier in chosen.values() for n in earlier):
            chosen[entity_id] = names
    return chosen
