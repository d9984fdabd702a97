"""Precision, recall and NIL of links against labelled texts, with intervals by group of texts.

A link is right when it overlaps a mention of the labels that means its entity. A mention is found when a right
link overlaps it. A link counts as of the kind, name or noun, of the mention that it shares most characters with; one
that overlaps no mention counts as a noun where it is written in lower case, and as a name otherwise. A name that the
base lacks is refused when no link overlaps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.linking.gold import GoldMention, GoldText

NUM_RESAMPLES = 10_000
# Numerator and denominator of each metric, as counts of one text.
_COUNTS = (
    "name.right", "name.links", "name.found", "name.mentions",
    "noun.right", "noun.links", "noun.found", "noun.mentions",
    "nil.refused", "nil.mentions",
)  # fmt: skip
METRICS = {
    "name.precision": ("name.right", "name.links"),
    "name.recall": ("name.found", "name.mentions"),
    "noun.precision": ("noun.right", "noun.links"),
    "noun.recall": ("noun.found", "noun.mentions"),
    "nil.refused": ("nil.refused", "nil.mentions"),
}


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
    texts: Sequence[GoldText], links: Mapping[str, Sequence[Link]], *, seed: int = 0
) -> dict[str, Share]:
    """Returns the metrics of `METRICS`; one whose denominator is 0 is left out.

    Intervals are percentiles of a bootstrap that draws whole groups of texts, since captions of one article share
    names.

    Args:
        texts: labelled texts.
        links: text id to the links that were made in it; a text without an entry has none.
        seed: of the bootstrap.
    """
    counts = np.array([text_counts(one, links.get(one.text_id, ())) for one in texts], np.int64)
    groups = {name: position for position, name in enumerate(dict.fromkeys(one.group for one in texts))}
    of_group = np.zeros((len(groups), len(_COUNTS)), np.int64)
    np.add.at(of_group, [groups[one.group] for one in texts], counts)
    draws = np.random.default_rng(seed).multinomial(len(groups), [1 / len(groups)] * len(groups), NUM_RESAMPLES)
    resampled, totals = draws @ of_group, of_group.sum(axis=0)
    found: dict[str, Share] = {}
    for name, (over, under) in METRICS.items():
        above, below = _COUNTS.index(over), _COUNTS.index(under)
        if totals[below] == 0:
            continue
        drawn = resampled[resampled[:, below] > 0]
        low, high = np.quantile(drawn[:, above] / drawn[:, below], [0.025, 0.975])
        found[name] = Share(
            value=float(totals[above] / totals[below]),
            numerator=int(totals[above]),
            denominator=int(totals[below]),
            low=float(low),
            high=float(high),
        )
    return found


def text_counts(text: GoldText, links: Sequence[Link]) -> list[int]:
    """Returns the counts of one text, in the order of `_COUNTS`."""
    counts = dict.fromkeys(_COUNTS, 0)
    for link in links:
        mention = _overlapping(link, text.mentions)
        if mention is not None:
            kind = mention.kind
        else:
            kind = "noun" if text.text[link.start : link.end].islower() else "name"
        counts[f"{kind}.links"] += 1
        counts[f"{kind}.right"] += mention is not None and link.entity_id in mention.entity_ids
    for mention in text.mentions:
        over = [link for link in links if link.start < mention.end and mention.start < link.end]
        if not mention.entity_ids:
            counts["nil.mentions"] += 1
            counts["nil.refused"] += not over
            continue
        counts[f"{mention.kind}.mentions"] += 1
        counts[f"{mention.kind}.found"] += any(link.entity_id in mention.entity_ids for link in over)
    return list(counts.values())


def _overlapping(link: Link, mentions: Sequence[GoldMention]) -> GoldMention | None:
    """Returns the mention that shares most characters with `link`, of equal ones the first; None: none overlaps."""
    shared = [min(link.end, one.end) - max(link.start, one.start) for one in mentions]
    most = max(shared, default=0)
    return mentions[shared.index(most)] if most > 0 else None
