import numpy as np
import pytest

from evaluation.entities import accuracy_at, classifier_metrics, rank_of_truth
from tests.evaluation.builders import pictures


def test_rank_of_truth_counts_what_is_larger_and_ties_of_smaller_id():
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    # Row 0: class a has two above it. Rows 1 and 2: a tie of all; by id the order is a, b, c = columns 0, 2, 1.
    ranks = rank_of_truth(scores, np.array([0, 1, 0]), ["a", "c", "b"])
    assert ranks.tolist() == [3, 3, 1]
    assert accuracy_at(ranks, 1) == pytest.approx(1 / 3)


def test_a_nan_score_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        rank_of_truth(np.array([[np.nan, 1.0]]), np.array([0]), ["a", "b"])


def test_only_held_out_renderings_of_seen_entities_in_the_vocabulary_are_scored():
    set_ = pictures(
        [
            ("a", "cat", "n", False, False),  # training saw the rendering
            ("b", "cat", "t", True, False),  # scored, right
            ("c", "dog", "t", True, False),  # scored, wrong at 1, right at 5
            ("d", "emu", "t", True, True),  # unseen entity
            ("e", "yak", "t", True, False),  # not in the vocabulary
        ]
    )
    embeddings = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    values, counts = classifier_metrics(
        embeddings, set_, np.eye(2, dtype=np.float32), ["cat", "dog"], {"cat": 9, "dog": 2}
    )
    assert values["accuracy_at_1"] == 0.5
    assert values["accuracy_at_5"] == 1.0
    assert (values["head.accuracy_at_1"], values["middle.accuracy_at_1"]) == (1.0, 0.0)
    assert counts == {"num_pictures": 2, "num_out_of_vocabulary": 1, "num_classes": 2}


def test_nothing_to_score_gives_no_metric():
    set_ = pictures([("a", "cat", "n", False, False)])
    values, counts = classifier_metrics(np.ones((1, 1), np.float32), set_, np.ones((1, 1), np.float32), ["cat"])
    assert values == {} and counts["num_pictures"] == 0
