"""From scores to probabilities, and from probabilities to an entity or NIL."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.linking.choice import choose, softmax_with_nil
from pipeline.schema import Candidate, LinkedMention, Mention


def linked(*candidates: Candidate) -> LinkedMention:
    mention = Mention(start=0, end=7, surface="Georgia", score=1.0, finder="tagger")
    return LinkedMention(mention=mention, candidates=candidates, chosen=None, probability=0.0)


def test_nil_scores_zero() -> None:
    # exp(ln 3) = 3, exp(ln 4) = 4, NIL 1: of 8.
    assert softmax_with_nil(np.log([3.0, 4.0])).tolist() == pytest.approx([3 / 8, 4 / 8])
    # exp(-ln 2) = 1 / 2, NIL 1: of 3 / 2.
    assert softmax_with_nil(np.log([0.5])).tolist() == pytest.approx([1 / 3])
    assert softmax_with_nil(np.zeros(0)).tolist() == []


def test_large_scores_neither_overflow_nor_lose_their_difference() -> None:
    assert softmax_with_nil(np.array([1000.0, 999.0])).tolist() == pytest.approx(
        [math.e / (math.e + 1), 1 / (math.e + 1)]
    )
    assert softmax_with_nil(np.array([-1000.0])).tolist() == [0.0]


def test_the_answer_carries_the_evidence_and_all_that_the_candidates_had() -> None:
    first = Candidate(
        entity_id="Q1", prior=0.7, match=0.9, case="common", link_probability=0.2, score=0.1, similarity=0.3
    )
    second = Candidate(entity_id="Q2", prior=0.3)
    found = choose(linked(first, second), [[1.0, 2.0], [3.0, 4.0]], [0.25, 0.5], 0.5)
    assert found.mention == linked().mention
    assert (found.chosen, found.by_text, found.probability) == ("Q2", "Q2", 0.5)
    assert found.candidates == (
        Candidate(
            entity_id="Q1", prior=0.7, match=0.9, case="common", link_probability=0.2, evidence=(1.0, 2.0), score=0.25,
            similarity=0.3,
        ),
        Candidate(entity_id="Q2", prior=0.3, evidence=(3.0, 4.0), score=0.5),
    )  # fmt: skip


def test_it_is_nil_where_all_candidates_together_are_less_likely_than_the_limit() -> None:
    both = linked(Candidate(entity_id="Q1", prior=0.5), Candidate(entity_id="Q2", prior=0.5))
    for limit, chosen, probability in ((0.5, "Q1", 0.25), (0.5001, None, 0.5)):
        found = choose(both, [[], []], [0.25, 0.25], limit)
        assert (found.chosen, found.by_text, found.probability) == (chosen, chosen, probability)
    found = choose(linked(), [], [], 0.0)
    assert (found.chosen, found.probability, found.candidates) == (None, 1.0, ())


@pytest.mark.parametrize(("evidence", "shares"), [([[1.0]], [0.5, 0.5]), ([[1.0], [1.0]], [0.5])])
def test_candidates_evidence_and_shares_of_unequal_number_are_an_error(
    evidence: list[list[float]], shares: list[float]
) -> None:
    both = linked(Candidate(entity_id="Q1", prior=0.5), Candidate(entity_id="Q2", prior=0.5))
    with pytest.raises(ValueError, match="shorter"):
        choose(both, evidence, shares, 0.5)
