"""Candidates -> the entity meant, or NIL, from the prior, the text, and the other entities of the text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.kb import bag_of_words
from pipeline.kb.bag_of_words import Word
from pipeline.kb.normalise import WORD
from pipeline.kb.store import KnowledgeBase
from pipeline.schema import Batch, Candidate, LinkedMention, Row

STAGE = "disambiguate"
_PRIOR_MIN = 1e-4  # keeps the logarithm finite
_FILE_WORDS = re.compile(r"[a-z]*\d+[a-z\d]*")  # file numbers and sizes: "img2043", "64px"
# What texts beside pictures say about the picture, whatever it shows; no evidence for or against an entity.
PICTURE_NOUNS = frozenset(
    "art artwork background best buy card clip close closeup collection colour color cute delivery "
    "design download element file flat free gif graphic hd high icon image national official img isolated item jpeg "
    "jpg large line online outline pack page photo photograph pic picture png pixel pixels preview print product px "
    "quality resolution sale set shipping shop small stock style svg symbol tag thumbnail transparent vector view "
    "wallpaper web webp website white black".split()
)
# What a word about the picture tells of the kind of thing in it: flags are of places, logos of organisations, and
# drawings of things, which are neither. The kinds are told by words of the description and types.
PICTURED_KINDS = {
    **dict.fromkeys(("flag", "banner", "ensign"), "place"),
    **dict.fromkeys(("logo", "logotype", "wordmark", "trademark", "brand"), "organisation"),
    **dict.fromkeys(("emoji", "emoticon", "sticker", "clipart", "cartoon", "illustration", "drawing"), "thing"),
}
KIND_WORDS = {
    "place": "country state nation territory island republic kingdom province region city county department".split(),
    "organisation": (
        "company corporation brand chain retailer manufacturer operator bank airline franchise agency organization "
        "organisation network service startup multinational conglomerate subsidiary publisher university school"
    ).split(),
}
_KIND_KEYS = {kind: frozenset(bag_of_words.hash_word(word).key for word in words) for kind, words in KIND_WORDS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisambiguateConfig:
    """Weights of the evidence, in nats a unit of evidence.

    All are this project's choice: found by random search on half of the demo's pairs, those of even keys.
    """

    prior_weight: float = 0.7
    """On the logarithm of the prior."""
    text_weight: float = 13.75
    """On the share of the text's informative words that the entity's description explains."""
    coherence_weight: float = 0.9
    """On the agreement with the other entities of the text."""
    kind_weight: float = 0.65
    """On the agreement of the candidate's kind with what the text says of the picture (flag, logo, drawing)."""
    scorer_weight: float = 1.0
    """On each further scorer."""
    nil_bias: float = -4.1
    """Score of NIL in a text that says nothing beside the name."""
    nil_context_weight: float = 5.0
    """On how much the text says (0 to 1): much said, and none of it explained, speaks for NIL."""
    nil_word_weight: float = 1.25
    """On one over the number of words in the name: short names have meanings that no base holds."""
    nil_mention_weight: float = 0.75
    """On the doubt of the mention finder, one minus its score."""
    context_saturation: float = 5.8
    """Summed rarity of the words, in nats, at which a text says half of what a text can."""
    num_iterations: int = 2
    """Rounds in which the entities of a text inform each other."""
    probability_min: float = 0.5
    """Below it the answer is NIL."""


class Scorer(Protocol):
    """Further evidence for candidates: graph embeddings, the picture. Plugged into `Disambiguate(scorers=...)`."""

    def score(self, row: Row, linked: LinkedMention, candidate: Candidate) -> float:
        """Returns the evidence for `candidate`, about -1 to 1; 0 is neutral."""
        ...


def disambiguate_row(row: Row, kb: KnowledgeBase, config: DisambiguateConfig, scorers: Sequence[Scorer] = ()) -> Row:
    """Returns `row` with an entity or NIL chosen for each linked mention, and the evidence in its candidates.

    A candidate's score is its probability by the softmax over all candidates of the mention and NIL. The coherence of
    a candidate is its expected relatedness to the entities of the other mentions under their current probabilities,
    so it is computed anew `config.num_iterations` times.
    """
    words = _weighted_words(row.pair.text, kb)
    kinds = pictured_kinds(row.pair.text)
    base: list[list[float]] = []
    text_scores: list[list[float]] = []
    nil: list[float] = []
    for linked in row.linked:
        context = _context_words(words, linked)
        closeness = [
            bag_of_words.explained_share(context, kb.document(candidate.entity_id)) for candidate in linked.candidates
        ]
        said = math.fsum(weight for _, weight in context)
        nil.append(
            config.nil_bias
            + config.nil_context_weight * said / (said + config.context_saturation)
            + config.nil_word_weight / max(len(WORD.findall(linked.mention.surface)), 1)
            + config.nil_mention_weight * (1.0 - linked.mention.score)
        )
        text_scores.append(closeness)
        base.append(
            [
                config.prior_weight * math.log(max(candidate.prior, _PRIOR_MIN))
                + config.text_weight * text_score
                + config.kind_weight * (kind_of(kb.document(candidate.entity_id)) in kinds)
                + config.scorer_weight * sum(scorer.score(row, linked, candidate) for scorer in scorers)
                for candidate, text_score in zip(linked.candidates, closeness, strict=True)
            ]
        )
    coherence = [[0.0] * len(linked.candidates) for linked in row.linked]
    probabilities = [_softmax(scores, nil_score) for scores, nil_score in zip(base, nil, strict=True)]
    if len(row.linked) > 1:
        for _ in range(config.num_iterations):
            coherence = _coherence(row.linked, probabilities, kb)
            probabilities = [
                _softmax([s + config.coherence_weight * c for s, c in zip(scores, agreements, strict=True)], nil_score)
                for scores, agreements, nil_score in zip(base, coherence, nil, strict=True)
            ]
    answers = []
    for linked, closeness, agreements, shares in zip(row.linked, text_scores, coherence, probabilities, strict=True):
        candidates = tuple(
            dataclasses.replace(candidate, text_score=text_score, coherence=agreement, score=share)
            for candidate, text_score, agreement, share in zip(
                linked.candidates, closeness, agreements, shares, strict=True
            )
        )
        # Equal scores fall to the likelier prior: candidates come in that order.
        best = max(candidates, key=lambda candidate: candidate.score, default=None)
        if best is None or best.score < config.probability_min:
            nil_share = 1.0 - math.fsum(shares)
            answers.append(dataclasses.replace(linked, candidates=candidates, chosen=None, probability=nil_share))
        else:
            answers.append(
                dataclasses.replace(linked, candidates=candidates, chosen=best.entity_id, probability=best.score)
            )
    return dataclasses.replace(row, linked=tuple(answers))


def pictured_kinds(text: str) -> frozenset[str]:
    """Returns the kinds of thing that the words of `text` say are in the picture: "place", "organisation", "thing"."""
    return frozenset(
        PICTURED_KINDS[word] for part in WORD.findall(text) for word in bag_of_words.split_words(part)
        if word in PICTURED_KINDS
    )  # fmt: skip


def kind_of(document: frozenset[int]) -> str:
    """Returns "place", "organisation" or "thing", by the words of an entity's document."""
    for kind, keys in _KIND_KEYS.items():
        if not keys.isdisjoint(document):
            return kind
    return "thing"


def relatedness(first: str, second: str, kb: KnowledgeBase) -> float:
    """Returns how closely two entities are tied in the graph, in [0, 1]: 1 for a link or for the same entity.

    Else half the share of their types that they have in common.
    """
    if first == second:
        return 1.0
    try:
        (links_a, types_a), (links_b, types_b) = kb.related(first), kb.related(second)
    except KeyError:
        return 0.0
    if second in links_a or first in links_b:
        return 1.0
    common = len(types_a & types_b)
    return 0.5 * common / len(types_a | types_b) if common else 0.0


def _coherence(
    linked: Sequence[LinkedMention], probabilities: Sequence[Sequence[float]], kb: KnowledgeBase
) -> list[list[float]]:
    """Returns the expected relatedness of each candidate to the entities of the other mentions, in [0, 1]."""
    others = len(linked) - 1
    rows = []
    for i, one in enumerate(linked):
        row = []
        for candidate in one.candidates:
            total = 0.0
            for j, other in enumerate(linked):
                if j != i:
                    for rival, share in zip(other.candidates, probabilities[j], strict=True):
                        if share > 0.01:
                            total += share * relatedness(candidate.entity_id, rival.entity_id, kb)
            row.append(total / others)
        rows.append(row)
    return rows


def _weighted_words(text: str, kb: KnowledgeBase) -> list[tuple[int, int, str, Word, float]]:
    """Returns (start, end, word, hashed, rarity) of the informative words of `text`."""
    rarity = kb.inverse_document_frequency
    words = []
    for match in WORD.finditer(text):
        stems = bag_of_words.split_words(match[0])
        if not stems or stems[0] in PICTURE_NOUNS or stems[0] in PICTURED_KINDS or _FILE_WORDS.fullmatch(stems[0]):
            continue
        hashed = bag_of_words.hash_word(stems[0])
        weight = float(rarity[hashed.key % bag_of_words.NUM_BUCKETS])
        if weight > 0.0:
            words.append((match.start(), match.end(), stems[0], hashed, weight))
    return words


def _context_words(words: list[tuple[int, int, str, Word, float]], linked: LinkedMention) -> list[tuple[Word, float]]:
    """Returns the distinct words outside the mention, without those of the name, which all its candidates have."""
    name = set(bag_of_words.split_words(linked.mention.surface))
    distinct: dict[str, tuple[Word, float]] = {}
    for start, end, word, hashed, weight in words:
        if (end <= linked.mention.start or linked.mention.end <= start) and word not in name:
            distinct[word] = (hashed, weight)
    return list(distinct.values())


def _softmax(scores: Sequence[float], nil_score: float) -> list[float]:
    """Returns the probabilities of `scores`, NIL taking the rest to 1."""
    top = max(nil_score, *scores) if scores else nil_score
    exponents = [math.exp(score - top) for score in scores]
    total = math.fsum(exponents) + math.exp(nil_score - top)
    return [exponent / total for exponent in exponents]


class Disambiguate(beam.PTransform):
    """Batch -> `kept` (Batch, rows with an entity) and `rejected` (Rejection, reason "all_nil").

    Args:
        kb_path: the knowledge base that the candidates come from.
        config: the weights.
        scorers: further evidence, picklable.
    """

    def __init__(self, kb_path: str, config: DisambiguateConfig | None = None, scorers: Sequence[Scorer] = ()):
        super().__init__()
        self.kb_path = kb_path
        self.config = config or DisambiguateConfig()
        self.scorers = tuple(scorers)

    def expand(self, batches: beam.PCollection) -> Any:
        """Returns the tagged outputs."""
        do_fn = _DisambiguateFn(self.kb_path, self.config, self.scorers)
        return batches | beam.ParDo(do_fn).with_outputs("rejected", main="kept")


class _DisambiguateFn(beam.DoFn):
    def __init__(self, kb_path: str, config: DisambiguateConfig, scorers: tuple[Scorer, ...]):
        self._kb_path = kb_path
        self._config = config
        self._scorers = scorers

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self._kb_path)

    def process(self, batch: Batch) -> Iterator[Any]:
        kept = []
        for row in batch.rows:
            answered = disambiguate_row(row, self._kb, self._config, self._scorers)
            num_linked = sum(linked.chosen is not None for linked in answered.linked)
            Metrics.counter(STAGE, "mentions_linked").inc(num_linked)
            Metrics.counter(STAGE, "mentions_nil").inc(len(answered.linked) - num_linked)
            if num_linked:
                kept.append(answered)
                continue
            Metrics.counter(STAGE, "rejected_all_nil").inc()
            rejection = answered.rejected(stage=STAGE, reason="all_nil")
            yield beam.pvalue.TaggedOutput("rejected", rejection)
        Metrics.counter(STAGE, "kept").inc(len(kept))
        if kept:
            yield dataclasses.replace(batch, rows=tuple(kept))
