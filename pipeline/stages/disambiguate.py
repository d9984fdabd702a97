"""Candidates -> the entity meant, or NIL: by all evidence, and by the other entities of the text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pipeline.config import DisambiguateConfig
from pipeline.kb.graph import text_vector
from pipeline.kb.names import head
from pipeline.kb.store import KnowledgeBase
from pipeline.linking.choice import choose, softmax_with_nil
from pipeline.linking.evidence import PLACE, TextEvidence
from pipeline.linking.meaning import TextComparer
from pipeline.linking.picture import in_doubt
from pipeline.linking.sentences import load_sentence_encoder
from pipeline.linking.weights import Weights, weights_of
from pipeline.row_stage import RowStage
from pipeline.schema import LinkedMention, Rejection, Row

STAGE = "disambiguate"
TIES = frozenset(("coherence", "graph"))  # evidence that depends on the other mentions
_NUM_INFORMING = 32  # the surest mentions of a text, with which the others are compared: a list of names has hundreds
_SHARE_MIN = 0.01  # a less likely meaning neither informs other mentions nor is informed by them


def disambiguate_row(row: Row, kb: KnowledgeBase, config: DisambiguateConfig, weights: Weights) -> Row:
    """Returns `row` with an entity or NIL chosen for each linked mention, and the evidence in its candidates."""
    return answer_row(row, gather_evidence(row, kb, weights.used), kb, config, weights)


def gather_rows(
    rows: Sequence[Row], kb: KnowledgeBase, used: frozenset[str], comparer: TextComparer | None
) -> list[list[np.ndarray]]:
    """Returns for each row what `gather_evidence` does, and with a comparer the meaning too."""
    gathered = [gather_evidence(row, kb, used) for row in rows]
    if comparer is not None:
        comparer.add_meaning(rows, gathered)
    return gathered


def gather_evidence(row: Row, kb: KnowledgeBase, used: frozenset[str]) -> list[np.ndarray]:
    """Returns for each linked mention of `row` the evidence in `used`, float `[candidates, len(EVIDENCE)]`.

    The meaning, and what the other mentions say, is still 0.
    """
    text = TextEvidence(head(row.pair.text), kb, used)
    return [np.array(text.of_mention(linked)).reshape(len(linked.candidates), len(PLACE)) for linked in row.linked]


def answer_row(
    row: Row, evidence: Sequence[np.ndarray], kb: KnowledgeBase, config: DisambiguateConfig, weights: Weights
) -> Row:
    """Returns `row` with an entity or NIL chosen for each linked mention, and the evidence in its candidates.

    A candidate's score is its probability by the softmax over all candidates of the mention and NIL. How a candidate
    is tied to the other entities of the text depends on what those are, so the probabilities are computed again
    `config.num_iterations` times.

    Args:
        row: with candidates.
        evidence: see `gather_evidence`; the coherence is written into it.
        kb: the knowledge base of the candidates.
        config: of the choice.
        weights: of the evidence.
    """
    vector = np.array(weights.of_evidence)
    probabilities = [softmax_with_nil(one @ vector + weights.bias) for one in evidence]
    ties = weights.used & TIES
    num_rounds = config.num_iterations if len(row.linked) > 1 and ties else 0  # pragma: no mutate: to save time
    for _ in range(num_rounds):
        add_ties(row.linked, evidence, probabilities, kb, ties)
        probabilities = [softmax_with_nil(one @ vector + weights.bias) for one in evidence]
    answers = [
        choose(linked, one.tolist(), shares.tolist(), weights.probability_min)
        for linked, one, shares in zip(row.linked, evidence, probabilities, strict=True)
    ]
    return dataclasses.replace(row, linked=tuple(answers))


def add_ties(
    linked: Sequence[LinkedMention],
    evidence: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    kb: KnowledgeBase,
    used: frozenset[str] = TIES,
) -> None:
    """Writes into `evidence` how closely each candidate is tied to the entities that the other mentions may mean.

    "coherence" is the expected `relatedness`, in [0, 1], under the current probabilities; "graph" is the cosine of the
    graph vectors of the candidate and of what the other mentions mean, in [-1, 1]. Both are 0 for a candidate that is
    hardly possible, and such a one informs no other.

    Args:
        linked: the mentions.
        evidence: of each mention, float `[candidates, evidence]`.
        probabilities: of each mention, float `[candidates]`.
        kb: the knowledge base.
        used: which of the two to write.
    """
    for table in evidence:
        table[:, [PLACE[name] for name in sorted(used)]] = 0.0
    tops = [float(shares.max(initial=0.0)) for shares in probabilities]
    surest = sorted(range(len(linked)), key=lambda i: (-tops[i], i))[:_NUM_INFORMING]
    likely = {
        i: [(linked[i].candidates[c].entity_id, float(probabilities[i][c])) for c in _likely(probabilities[i])]
        for i in surest
    }
    for i, one in enumerate(linked):
        rivals = [rival for j, of_other in likely.items() if j != i for rival in of_other]
        others = len(likely) - (i in likely)
        of_text = text_vector(kb, rivals) if "graph" in used else None
        for c in _likely(probabilities[i]) if others else ():
            mine = one.candidates[c].entity_id
            if "coherence" in used:
                tied = math.fsum(share * relatedness(mine, rival, kb) for rival, share in rivals)
                evidence[i][c, PLACE["coherence"]] = tied / others
            if of_text is not None and (vector := kb.vector(mine)) is not None:
                evidence[i][c, PLACE["graph"]] = float(vector @ of_text)


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


def _likely(shares: np.ndarray) -> list[int]:
    return np.flatnonzero(shares > _SHARE_MIN).tolist()


class Disambiguate(RowStage):
    """Keeps the rows with an entity, or with doubt that the picture may end; rejects the others ("all_nil").

    Args:
        kb_path: the knowledge base that the candidates come from.
        config: the settings.
    """

    name = STAGE

    def __init__(self, kb_path: str, config: DisambiguateConfig | None = None):
        super().__init__()
        self.kb_path = kb_path
        self.config = config or DisambiguateConfig()
        self.weights = weights_of(self.config)

    def setup(self) -> None:
        self._kb = KnowledgeBase.open(self.kb_path)
        self._encoder = load_sentence_encoder(self.config.sentence_encoder) if self.config.sentence_encoder else None
        self._comparer = TextComparer(self._encoder, self._kb) if self._encoder else None

    def model(self) -> str:
        return f"sentence encoder on {self._encoder.device}" if self._encoder else ""

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        gathered = gather_rows(rows, self._kb, self.weights.used, self._comparer)
        answered = [
            answer_row(row, evidence, self._kb, self.config, self.weights)
            for row, evidence in zip(rows, gathered, strict=True)
        ]
        return [
            row
            if any(linked.chosen is not None or in_doubt(linked, self.config, self.weights) for linked in row.linked)
            else row.rejected(stage=STAGE, reason="all_nil")
            for row in answered
        ]

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> dict[str, int]:
        mentions = [linked for outcome in outcomes for linked in outcome.linked]
        num_linked = sum(linked.chosen is not None for linked in mentions)
        return {
            "mentions_linked": num_linked,
            "mentions_nil": len(mentions) - num_linked,
            "mentions_in_doubt": sum(in_doubt(linked, self.config, self.weights) for linked in mentions),
        }
