"""The names of entities: what they are keyed by, how they are written, and the prior of each meaning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.kb.normalise import FOLDED, LEGAL_FORMS, fold_key, normalise_alias, strip_legal_suffix
from pipeline.kb.store import KEY_BYTES_MAX

MEANINGS_MAX = 2000  # of a name
_ALIAS_WEIGHT = 0.4  # of a name that is not the label, against 1 for the label (ours)
_LEGAL_ENDS = frozenset((*LEGAL_FORMS, "s.p.a", "s.a"))
_POPULARITY_WEIGHT = 1.0  # of the prior by popularity, in anchors counted (ours)


class Name(NamedTuple):
    """One name of an entity."""

    key: str  # normalised
    weight: float  # popularity times kind of name, above 0
    case: str


class Meaning(NamedTuple):
    """One entity that a name may mean, before the prior is known."""

    entity: int
    weight: float  # by popularity; 0 for a name that only anchors give
    case: int
    num_anchors: int = 0


def case_of(name: str) -> str:
    """Returns how `name` is written: "common" without a capital letter, "acronym" in one word of capitals, "proper".

    Names in scripts without capital letters are "proper".
    """
    if name.islower():
        return "common"
    is_acronym = name.isupper() and sum(map(str.isalpha, name)) > 1 and not any(map(str.isspace, name))
    return "acronym" if is_acronym else "proper"


def names_of(label: str, aliases: Iterable[str], popularity: float) -> list[Name]:
    """Returns the distinct names of an entity.

    A name without its legal form ("Apple" of "Apple Inc.") counts as an alias. A name that `fold_key` changes has that
    key too, behind `FOLDED`, so that "citroen" finds "Citroën". Names that normalise to nothing or are too long for a
    key are left out. An entity whose label is a proper name has no common nouns: its aliases in small letters are
    proper names that somebody wrote carelessly.
    """
    is_common = case_of(label) == "common"
    found: dict[str, Name] = {}
    weight = 1.0 + popularity
    alias_weight = weight * _ALIAS_WEIGHT
    for name in (label, *aliases):
        key = normalise_alias(name)
        case = case_of(name)
        if case == "common" and not is_common:
            case = "proper"
        _add(found, key, weight, case)
        if "," in key or key[key.rfind(" ") + 1 :].rstrip(".") in _LEGAL_ENDS:  # this spares the search in most names
            _add(found, strip_legal_suffix(key), alias_weight, case)
        weight = alias_weight
    return [name for key, name in found.items() if 0 < len(key.encode()) <= KEY_BYTES_MAX]


def _add(found: dict[str, Name], key: str, weight: float, case: str) -> None:
    if key not in found:
        found[key] = Name(key, weight, case)
    if key.isascii() and key.isalnum():  # nothing to fold: this spares most of the time
        return
    folded = fold_key(key)
    if folded != key and folded and (folded := FOLDED + folded) not in found:
        found[folded] = Name(folded, weight, case)


def priors(meanings: Iterable[Meaning], *, num_outside: int = 0) -> list[tuple[int, float, int]]:
    """Returns (entity, prior, case) for each of `meanings`, the likeliest first, at most `MEANINGS_MAX`.

    By popularity the prior is w / W, the share of the entity in the weights of the name. Where texts link the name n
    times in all and n_e times to the entity, it is (n_e + w / W) / (n + 1). So the priors of all meanings sum to 1,
    less the share of the links that mean entities which the base lacks.

    Args:
        meanings: of one name.
        num_outside: how often texts link the name to an entity that the base lacks.
    """
    found = list(meanings)
    weights = sum(one.weight for one in found)
    anchors = sum(one.num_anchors for one in found) + num_outside
    by_popularity = _POPULARITY_WEIGHT if weights else 0.0
    total = anchors + by_popularity
    shares = [
        (one.entity, (one.num_anchors + (one.weight / weights if weights else 0.0) * by_popularity) / total, one.case)
        for one in found
    ]
    return sorted(shares, key=lambda share: (-share[1], share[0]))[:MEANINGS_MAX]
