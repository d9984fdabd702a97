"""Precision, recall and NIL of links against labelled texts, with intervals by group of texts.

A link is right when it overlaps a mention of the labels that means its entity. A mention is found when a right
link overlaps it. A link counts as of the kind, name or noun, of the mention that it shares most characters with; one
that overlaps no mention counts as a noun where it is written in lower case, and as a name otherwise. A name that the
base lacks is refused when no link overlaps it.

Links of Wikipedia articles are labels of another kind: they say what some spans name, and nothing of the others. So
there is no precision; what is counted is how their names end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evaluation.linking.gold import GoldMention, GoldText

NUM_RESAMPLES = 10_000
ENTITY_KINDS = ("place", "brand", "concept")
# Numerator and denominator of each metric, as counts of one text.
METRICS = {
    "name.precision": ("name.right", "name.links"),
    "name.recall": ("name.found", "name.mentions"),
    "noun.precision": ("noun.right", "noun.links"),
    "noun.recall": ("noun.found", "noun.mentions"),
    "nil.refused": ("nil.refused", "nil.mentions"),
}
# By the kind of the entity that is linked, and of the one that is meant.
KIND_METRICS = {
    f"{kind}.{name}": (f"{kind}.{over}", f"{kind}.{under}")
    for kind in ENTITY_KINDS
    for name, over, under in (("precision", "right", "links"), ("recall", "found", "mentions"))
}
WIKIPEDIA_METRICS = {
    "ambiguous.accuracy": ("ambiguous.right", "ambiguous"),  # names of the base with two or more candidates
    "unambiguous.accuracy": ("unambiguous.right", "unambiguous"),  # with one
    "in_base.refused": ("in_base.refused", "in_base"),  # names of the base with a candidate that get no link
    "outside.nil": ("outside.nil", "outside"),  # names that the base has, for something else, and that get no link
    "outside_names.nil": ("outside_names.nil", "outside_names"),  # those of them with a capital letter
}
Counts = Mapping[str, int]  # of one text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A span `[start, end)`, in characters, that was linked to an entity."""

    start: int
    end: int
    entity_id: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A metric, what it rests on, and its 95 % interval."""

    value: float
    numerator: int
    denominator: int
    low: float
    high: float


def linking_scores(
    texts: Sequence[GoldText],
    links: Mapping[str, Sequence[Link]],
    *,
    kind_of: Callable[[str], str] | None = None,
    seed: int = 0,
) -> dict[str, Share]:
    """Returns the metrics of `METRICS`, and with `kind_of` those of `KIND_METRICS`; without those of denominator 0.

    Args:
        texts: labelled texts.
        links: text id to the links that were made in it; a text without an entry has none.
        kind_of: entity id to one of `ENTITY_KINDS`.
        seed: of the bootstrap, see `shares`.
    """
    counts = [text_counts(one, links.get(one.text_id, ()), kind_of) for one in texts]
    return shares(texts, counts, METRICS if kind_of is None else METRICS | KIND_METRICS, seed=seed)


def wikipedia_scores(
    texts: Sequence[GoldText],
    links: Mapping[str, Sequence[Link]],
    num_candidates: Callable[[str], int],
    *,
    seed: int = 0,
) -> dict[str, Share]:
    """Returns the metrics of `WIKIPEDIA_METRICS`; without those of denominator 0.

    Args:
        texts: labelled by the links of Wikipedia articles.
        links: see `linking_scores`.
        num_candidates: words of a link to the number of entities that the base knows by them.
        seed: of the bootstrap, see `shares`.
    """
    counts = [_wikipedia_counts(one, links.get(one.text_id, ()), num_candidates) for one in texts]
    return shares(texts, counts, WIKIPEDIA_METRICS, seed=seed)


def shares(
    texts: Sequence[GoldText], counts: Sequence[Counts], metrics: Mapping[str, tuple[str, str]], *, seed: int = 0
) -> dict[str, Share]:
    """Returns each metric that has cases, with its interval.

    Intervals are percentiles of a bootstrap that draws whole groups of texts, since captions of one article share
    names.

    Args:
        texts: whose groups are drawn.
        counts: of each text.
        metrics: name to the counts that are its numerator and denominator.
        seed: of the bootstrap.
    """
    names = sorted({name for pair in metrics.values() for name in pair})
    table = np.array([[one.get(name, 0) for name in names] for one in counts], np.int64).reshape(len(texts), len(names))
    groups = {name: position for position, name in enumerate(dict.fromkeys(one.group for one in texts))}
    of_group = np.zeros((len(groups), len(names)), np.int64)
    np.add.at(of_group, [groups[one.group] for one in texts], table)
    resampled, totals = _draws(len(groups), seed) @ of_group, of_group.sum(axis=0)
    found: dict[str, Share] = {}
    for metric, (over, under) in metrics.items():
        above, below = names.index(over), names.index(under)
        if totals[below] == 0:
            continue
        drawn = resampled[resampled[:, below] > 0]
        low, high = np.quantile(drawn[:, above] / drawn[:, below], [0.025, 0.975])
        found[metric] = Share(
            value=float(totals[above] / totals[below]),
            numerator=int(totals[above]),
            denominator=int(totals[below]),
            low=float(low),
            high=float(high),
        )
    return found


@functools.lru_cache(maxsize=1)  # one for all linkers of a set
def _draws(num_groups: int, seed: int) -> np.ndarray:
    """Returns how often each group is drawn in each resample, float64 `[NUM_RESAMPLES, num_groups]`."""
    draws = np.random.default_rng(seed).multinomial(num_groups, [1 / num_groups] * num_groups, NUM_RESAMPLES)
    return draws.astype(np.float64)  # products of integers are not done by BLAS


def text_counts(text: GoldText, links: Sequence[Link], kind_of: Callable[[str], str] | None = None) -> Counts:
    """Returns the counts of one text that `METRICS` and, with `kind_of`, `KIND_METRICS` rest on."""
    counts: Counter[str] = Counter()
    for link in links:
        mention = _overlapping(link, text.mentions)
        if mention is not None:
            kind = mention.kind
        else:
            kind = "noun" if text.text[link.start : link.end].islower() else "name"
        is_right = mention is not None and link.entity_id in mention.entity_ids
        for one in (kind, kind_of(link.entity_id)) if kind_of else (kind,):
            counts[f"{one}.links"] += 1
            counts[f"{one}.right"] += is_right
    for mention in text.mentions:
        over = _links_over(mention, links)
        if not mention.entity_ids:
            counts["nil.mentions"] += 1
            counts["nil.refused"] += not over
            continue
        is_found = any(link.entity_id in mention.entity_ids for link in over)
        for one in (mention.kind, *({kind_of(entity_id) for entity_id in mention.entity_ids} if kind_of else ())):
            counts[f"{one}.mentions"] += 1
            counts[f"{one}.found"] += is_found
    return counts


def _wikipedia_counts(text: GoldText, links: Sequence[Link], num_candidates: Callable[[str], int]) -> Counts:
    counts: Counter[str] = Counter()
    for mention in text.mentions:
        surface = text.text[mention.start : mention.end]
        num_meanings = num_candidates(surface)
        if num_meanings == 0:
            continue
        over = _links_over(mention, links)
        if not mention.entity_ids:
            for name in ("outside", *(() if surface.islower() else ("outside_names",))):
                counts[name] += 1
                counts[f"{name}.nil"] += not over
            continue
        counts["in_base"] += 1
        counts["in_base.refused"] += not over
        name = "ambiguous" if num_meanings > 1 else "unambiguous"
        counts[name] += 1
        counts[f"{name}.right"] += any(link.entity_id in mention.entity_ids for link in over)
    return counts


def _links_over(mention: GoldMention, links: Sequence[Link]) -> list[Link]:
    return [link for link in links if link.start < mention.end and mention.start < link.end]


def _overlapping(link: Link, mentions: Sequence[GoldMention]) -> GoldMention | None:
    """Returns the mention that shares most characters with `link`, of equal ones the first; None: none overlaps."""
    shared = [min(link.end, one.end) - max(link.start, one.start) for one in mentions]
    most = max(shared, default=0)
    return mentions[shared.index(most)] if most > 0 else None
