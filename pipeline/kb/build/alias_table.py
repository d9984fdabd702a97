"""The names of entities: what they are keyed by, how they are written, and the prior of each meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.kb.normalise import FOLDED, fold_key, normalise_alias, strip_legal_suffix
from pipeline.kb.store import KEY_BYTES_MAX, Entity

CASES = ("proper", "acronym", "common")
MEANINGS_MAX = 2000  # of a name
_ALIAS_WEIGHT = 0.4  # of a name that is not the label, against 1 for the label (ours)
_POPULARITY_WEIGHT = 1.0  # of the prior by popularity, in anchors counted (ours)


class Name(NamedTuple):
    """One name of an entity."""

    key: str  # normalised
    weight: float  # popularity times kind of name, above 0
    case: str  # of CASES


class Meaning(NamedTuple):
    """One entity that a name may mean, before the prior is known."""

    entity: str
    weight: float  # by popularity; 0 for a name that only anchors give
    case: str
    num_anchors: int = 0


def case_of(name: str) -> str:
    """Returns how `name` is written: "common" without a capital letter, "acronym" in one word of capitals, "proper".

    Names in scripts without capital letters are "proper".
    """
    if name.islower():
        return "common"
    is_acronym = name.isupper() and sum(map(str.isalpha, name)) > 1 and not any(map(str.isspace, name))
    return "acronym" if is_acronym else "proper"


def names_of(entity: Entity) -> list[Name]:
    """Returns the distinct names of `entity`.

    A name without its legal form ("Apple" of "Apple Inc.") counts as an alias. A name that `fold_key` changes has that
    key too, behind `FOLDED`, so that "citroen" finds "Citroën". Names that normalise to nothing or are too long for a
    key are left out.
    """
    found: dict[str, Name] = {}
    popularity = 1.0 + entity.popularity
    for name, kind in [(entity.label, 1.0), *((alias, _ALIAS_WEIGHT) for alias in entity.aliases)]:
        key = normalise_alias(name)
        case = case_of(name)
        for variant, share in ((key, kind), (strip_legal_suffix(key), _ALIAS_WEIGHT)):
            folded = fold_key(variant)
            for one in (variant, FOLDED + folded) if folded not in ("", variant) else (variant,):
                if one not in found and 0 < len(one.encode()) <= KEY_BYTES_MAX:
                    found[one] = Name(one, popularity * share, case)
    return list(found.values())


def priors(meanings: Iterable[Meaning]) -> list[tuple[str, float, str]]:
    """Returns (entity, prior, case) for each of `meanings`, the likeliest first, at most `MEANINGS_MAX`.

    By popularity the prior is w / W, the share of the entity in the weights of the name. Where texts link the name n
    times in all and n_e times to the entity, it is (n_e + w / W) / (n + 1). The priors of all meanings sum to 1, those
    that are left out included.
    """
    found = list(meanings)
    weights = sum(one.weight for one in found)
    anchors = sum(one.num_anchors for one in found)
    by_popularity = _POPULARITY_WEIGHT if weights else 0.0
    total = anchors + by_popularity
    shares = [
        (one.entity, (one.num_anchors + (one.weight / weights if weights else 0.0) * by_popularity) / total, one.case)
        for one in found
    ]
    return sorted(shares, key=lambda share: (-share[1], share[0]))[:MEANINGS_MAX]


def commonest_case(spellings: Mapping[str, int]) -> str:
    """Returns the case of the spelling that is counted most often."""
    return case_of(min(spellings, key=lambda name: (-spellings[name], name)))
