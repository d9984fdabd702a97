"""Candidates -> the entity meant, or NIL: by prior, description, use in other texts, and the other entities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

from pipeline.config import DisambiguateConfig
from pipeline.kb import bag_of_words
from pipeline.kb.bag_of_words import Word
from pipeline.kb.names import TEXT_CHARS_MAX
from pipeline.kb.normalise import WORD
from pipeline.kb.store import KnowledgeBase
from pipeline.kb.usage import FILE_WORD, name_key, words_beside
from pipeline.row_stage import RowStage
from pipeline.schema import Candidate, LinkedMention, Rejection, Row

STAGE = "disambiguate"
PRIOR_MIN = 1e-4  # keeps the logarithm finite
# Words of texts that describe the picture itself, whatever it shows: descriptions of entities need not explain them.
PICTURE_NOUNS = frozenset(
    "art artwork background banner best black brand buy card cartoon clip clipart close closeup collection color "
    "colour cute delivery design download drawing element emoji emoticon ensign file flag flat free gif graphic "
    "hd high icon illustration image img isolated item jpeg jpg large line logo logotype national official "
    "online outline pack page photo photograph pic picture pixel pixels png preview print product px quality "
    "resolution sale set shipping shop small sticker stock style svg symbol tag thumbnail trademark transparent "
    "vector view wallpaper web webp website white wordmark".split()
)
_NUM_INFORMING = 32  # the surest mentions of a text, with which the others are compared: a list of names has hundreds
_SHARE_MIN = 0.01  # a less likely meaning does not inform the other mentions


class Scorer(Protocol):
    """Further evidence for candidates: graph embeddings, the picture. Plugged into `Disambiguate(scorers=...)`."""

    def score(self, row: Row, linked: LinkedMention, candidate: Candidate) -> float:
        """Returns the evidence for `candidate`, about -1 to 1; 0 is neutral."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence of a text for one mention, before it is weighted."""

    candidates: tuple[Candidate, ...]  # with `text_score`, `seen_share` and `kind_evidence`
    said: float  # summed rarity of the words beside the mention, in nats
    num_name_words: int


def gather_evidence(row: Row, kb: KnowledgeBase) -> list[Evidence]:
    """Returns the evidence for each linked mention of `row`."""
    text, found = row.pair.text[:TEXT_CHARS_MAX], []
    words = _weighted_words(text, kb)
    for linked in row.linked:
        mention = linked.mention
        context = _context_words(words, linked)
        beside, name = words_beside(text, mention.start, mention.end), name_key(mention.surface)
        candidates = tuple(
            dataclasses.replace(
                candidate,
                text_score=bag_of_words.explained_share(context, kb.document(candidate.entity_id)),
                seen_share=kb.usage.seen_share(candidate.entity_id, beside, name),
                kind_evidence=kb.usage.kind_evidence(candidate.entity_id, kb.entity(candidate.entity_id).types, beside),
            )
            for candidate in linked.candidates
        )
        said = math.fsum(weight for _, weight in context)
        found.append(
            Evidence(candidates=candidates, said=said, num_name_words=max(len(WORD.findall(mention.surface)), 1))
        )
    return found


def disambiguate_row(row: Row, kb: KnowledgeBase, config: DisambiguateConfig, scorers: Sequence[Scorer] = ()) -> Row:
    """Returns `row` with an entity or NIL chosen for each linked mention, and the evidence in its candidates.

    A candidate's score is its probability by the softmax over all candidates of the mention and NIL. The coherence of
    a candidate is its expected relatedness to the entities of the other mentions under their current probabilities,
    so it is computed `config.num_iterations` times.
    """
    evidence = gather_evidence(row, kb)
    nil = [
        config.nil_bias
        + config.nil_context_weight * one.said / (one.said + config.context_saturation)
        + config.nil_word_weight / one.num_name_words
        for one in evidence
    ]
    base = [
        [
            config.prior_weight * math.log(max(candidate.prior, PRIOR_MIN))
            + config.text_weight * candidate.text_score
            + config.seen_weight * candidate.seen_share
            + config.kind_weight * candidate.kind_evidence
            + config.scorer_weight * sum(scorer.score(row, linked, candidate) for scorer in scorers)
            for candidate in one.candidates
        ]
        for linked, one in zip(row.linked, evidence, strict=True)
    ]
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
    for linked, one, agreements, shares in zip(row.linked, evidence, coherence, probabilities, strict=True):
        candidates = tuple(
            dataclasses.replace(candidate, coherence=agreement, score=share)
            for candidate, agreement, share in zip(one.candidates, agreements, shares, strict=True)
        )
        # Of equal scores the one with the higher prior wins: candidates are in that order.
        best = max(candidates, key=lambda candidate: candidate.score, default=None)
        if best is None or best.score < config.probability_min:
            nil_share = 1.0 - math.fsum(shares)
            answers.append(dataclasses.replace(linked, candidates=candidates, chosen=None, probability=nil_share))
        else:
            answers.append(
                dataclasses.replace(linked, candidates=candidates, chosen=best.entity_id, probability=best.score)
            )
    return dataclasses.replace(row, linked=tuple(answers))


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
    surest = sorted(range(len(linked)), key=lambda i: (-max(probabilities[i], default=0.0), i))[:_NUM_INFORMING]
    likely = {
        i: [
            (candidate.entity_id, share)
            for candidate, share in zip(linked[i].candidates, probabilities[i], strict=True)
            if share > _SHARE_MIN
        ]
        for i in surest
    }
    rows = []
    for i, one in enumerate(linked):
        rivals = [rival for j, of_other in likely.items() if j != i for rival in of_other]
        others = len(likely) - (i in likely)
        rows.append(
            [
                math.fsum(share * relatedness(candidate.entity_id, rival, kb) for rival, share in rivals) / others
                for candidate in one.candidates
            ]
        )
    return rows


def _weighted_words(text: str, kb: KnowledgeBase) -> list[tuple[int, int, str, Word, float]]:
    """Returns (start, end, word, hashed, rarity) of the informative words of `text`."""
    words = []
    for match in WORD.finditer(text):
        stems = bag_of_words.split_words(match[0])
        if not stems or stems[0] in PICTURE_NOUNS or FILE_WORD.fullmatch(stems[0]):
            continue
        hashed = bag_of_words.hash_word(stems[0])
        weight = kb.rarity(hashed.key)
        if weight > 0.0:
            words.append((match.start(), match.end(), stems[0], hashed, weight))
    return words


def _context_words(words: list[tuple[int, int, str, Word, float]], linked: LinkedMention) -> list[tuple[Word, float]]:
    """Returns the distinct words outside the mention, without those of the name, which all its candidates share."""
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


class Disambiguate(RowStage):
    """Keeps the rows with an entity; rejects those whose mentions are all answered NIL ("all_nil").

    Args:
        kb_path: the knowledge base that the candidates come from.
        config: the weights.
        scorers: further evidence, picklable.
    """

    name = STAGE

    def __init__(self, kb_path: str, config: DisambiguateConfig | None = None, scorers: Sequence[Scorer] = ()):
        super().__init__()
        self.kb_path = kb_path
        self.config = config or DisambiguateConfig()
        self.scorers = tuple(scorers)

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self.kb_path)

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        answered = [disambiguate_row(row, self._kb, self.config, self.scorers) for row in rows]
        return [
            row
            if any(linked.chosen is not None for linked in row.linked)
            else row.rejected(stage=STAGE, reason="all_nil")
            for row in answered
        ]

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> dict[str, int]:
        chosen = [linked.chosen is not None for outcome in outcomes for linked in outcome.linked]
        return {"mentions_linked": sum(chosen), "mentions_nil": len(chosen) - sum(chosen)}
