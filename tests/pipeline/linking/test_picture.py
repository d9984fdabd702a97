"""The picture decides what the text leaves open."""

import math

import numpy as np
import pytest

from pipeline.config import DisambiguateConfig
from pipeline.linking.picture import answer_by_picture, in_doubt, standing_out
from pipeline.linking.weights import Weights
from pipeline.schema import EVIDENCE, Candidate, LinkedMention, Mention

CONFIG = DisambiguateConfig(doubt_min=0.4, doubt_max=0.9)


def weights(bias=0.0, **of_evidence):
    return Weights(of_evidence=tuple(of_evidence.get(name, 0.0) for name in EVIDENCE), bias=bias)


SEEING = weights(picture=1.0)


def linked(*candidates, chosen=None):
    """Returns a mention with a candidate for each (score, similarity, evidence by name)."""
    mention = Mention(start=0, end=7, surface="Georgia", score=1.0, finder="tagger")
    return LinkedMention(
        mention=mention,
        candidates=tuple(
            Candidate(
                entity_id=f"Q{place}",
                prior=0.5,
                score=score,
                similarity=similarity,
                evidence=tuple(evidence.get(name, 0.0) for name in EVIDENCE),
            )
            for place, (score, similarity, evidence) in enumerate(candidates)
        ),
        chosen=chosen,
        probability=0.0,
        by_text=chosen,
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.3, 0.2), True),  # an open choice between two, and NIL
        ((0.2, 0.2), True),  # together just doubt_min
        ((0.2, 0.19), False),  # surely enough NIL
        ((0.89, 0.05), True),  # just below doubt_max
        ((0.9, 0.05), False),
        ((), False),
    ],
)
def test_a_mention_is_in_doubt_where_neither_an_entity_nor_nil_is_sure(scores, expected):
    assert in_doubt(linked(*((score, None, {}) for score in scores)), CONFIG, SEEING) is expected


def test_a_sure_nil_is_no_doubt_however_low_the_least_probability():
    # NIL has 0.95 - rounding aside - and 0.9 is sure.
    config = DisambiguateConfig(doubt_min=0.0, doubt_max=0.9)
    assert not in_doubt(linked((0.05, None, {})), config, SEEING)
    assert in_doubt(linked((0.15, None, {})), config, SEEING)


def test_a_greatest_probability_of_zero_never_asks_the_picture():
    assert not in_doubt(linked((0.5, None, {})), DisambiguateConfig(doubt_max=0.0), SEEING)


def test_weights_without_the_picture_never_ask_it():
    open_choice = linked((0.5, None, {}))
    assert in_doubt(open_choice, CONFIG, SEEING)
    assert not in_doubt(open_choice, CONFIG, weights(prior=1.0, compared=-1.0))


def test_similarities_are_measured_in_deviations_of_the_sample_above_its_mean():
    # Mean 0.2, standard deviation 0.1: 0.5 is 3 above it, 0.25 a half, and 0.1 is below.
    found = standing_out(np.array([0.5, 0.25, 0.1]), np.array([0.1, 0.3, 0.1, 0.3]))
    assert found.tolist() == pytest.approx([3.0, 0.5, 0.0])


def test_a_sample_without_spread_tells_nothing():
    assert standing_out(np.array([0.5, 0.1]), np.array([0.2, 0.2])).tolist() == [0.0, 0.0]


def test_the_picture_turns_the_choice_and_the_evidence_of_the_text_stays():
    by_text = linked((0.6, 0.2, {"prior": 0.5}), (0.3, 0.4, {"prior": 0.25}), chosen="Q0")
    answer = answer_by_picture(
        by_text,
        np.array([0.1, 0.3]),
        weights=weights(bias=0.5, prior=2.0, picture=1.5, compared=-1.0),
    )
    # The sample has mean 0.2 and deviation 0.1: picture is 0 and 2. The sums are 2 x 0.5 - 1 + 0.5 = 0.5 and
    # 2 x 0.25 + 1.5 x 2 - 1 + 0.5 = 3; that of NIL is 0.
    total = math.exp(0.5) + math.exp(3.0) + 1
    assert [one.score for one in answer.candidates] == pytest.approx([math.exp(0.5) / total, math.exp(3.0) / total])
    assert (answer.chosen, answer.by_text) == ("Q1", "Q0")
    assert answer.probability == pytest.approx(math.exp(3.0) / total)
    assert [dict(zip(EVIDENCE, one.evidence, strict=True)) for one in answer.candidates] == [
        {**dict.fromkeys(EVIDENCE, 0.0), "prior": 0.5, "compared": 1.0},
        {**dict.fromkeys(EVIDENCE, 0.0), "prior": 0.25, "picture": pytest.approx(2.0), "compared": 1.0},
    ]
    assert [one.similarity for one in answer.candidates] == [0.2, 0.4]


def test_a_picture_like_none_of_the_candidates_makes_a_name_nil():
    by_text = linked((0.7, 0.0, {"prior": 1.0}), chosen="Q0")
    answer = answer_by_picture(by_text, np.array([0.1, 0.3]), weights=weights(prior=1.0, picture=1.0, compared=-1.5))
    # 1 - 1.5 = -0.5, so the candidate has 1 / (1 + exp(0.5)) = 0.378.
    assert (answer.chosen, answer.by_text) == (None, "Q0")
    assert answer.probability == pytest.approx(1 - 1 / (1 + math.exp(0.5)))
