import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.classes import (
    accuracies,
    accuracy_at,
    calibration,
    class_ranks,
    frequency_groups,
    hits_at,
    top_probabilities,
    true_class_ranks,
)
from pipeline.schema import UserError
from tests.evaluation.metrics.references import exact_unit_vectors, literal_order, tied_problem


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_are_those_of_a_sort_by_score_and_class_position(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 4, (200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    expected = [
        label in sorted(range(7), key=lambda one: (-row[one], one))[:k]
        for row, label in zip(scores, labels, strict=True)
    ]
    assert hits_at(scores, labels, k).tolist() == expected


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="NaN"):
        hits_at(np.array([[np.nan, 1.0]]), np.array([0]), 1)


def slow_rank(embedding, label, classes):
    """The definition: one more than the classes that are more similar, or as similar and before."""
    similarities = [float(sum(a * b for a, b in zip(embedding, row, strict=True))) for row in classes]
    order = sorted(range(len(classes)), key=lambda position: (-similarities[position], position))
    return order.index(label) + 1


def test_ranks_and_accuracies_equal_the_slow_twin_with_ties():
    random = np.random.default_rng(4)
    embeddings, classes = exact_unit_vectors(random, 300), exact_unit_vectors(random, 40)
    labels = random.integers(0, 30, 300)  # ten classes have no picture
    expected = [slow_rank(row, label, classes) for row, label in zip(embeddings, labels, strict=True)]
    ranks = true_class_ranks(embeddings, labels, classes)
    np.testing.assert_array_equal(ranks, expected)
    by_class = {}
    for rank, label in zip(expected, labels, strict=True):
        by_class.setdefault(label, []).append(rank == 1)
    assert accuracies(ranks, labels, 40) == pytest.approx(
        {
            "accuracy_at_1": sum(rank <= 1 for rank in expected) / 300,
            "accuracy_at_5": sum(rank <= 5 for rank in expected) / 300,
            "mean_per_class_accuracy": sum(sum(hits) / len(hits) for hits in by_class.values()) / len(by_class),
        },
        abs=1e-12,
    )


def test_five_classes_have_no_accuracy_at_5():
    assert "accuracy_at_5" not in accuracies(np.array([1, 5]), np.array([0, 4]), 5)


@pytest.mark.parametrize("settings", [{}, {"block_rows": 7, "num_threads": 1}, {"block_rows": 16, "num_threads": 2}])
def test_ranks_are_those_of_a_literal_sort_by_score_and_entity_id(settings):
    embeddings, weights, entity_ids, truths = tied_problem()
    found = class_ranks(embeddings, weights, truths, entity_ids, **settings)
    for embedding, truth, ranks in zip(embeddings, truths, found, strict=True):
        order = literal_order(embedding, weights, entity_ids)
        assert ranks.tolist() == [order.index(one) + 1 for one in truth]


@pytest.mark.parametrize("block_rows", [7, 8192])
def test_the_softmax_is_the_literal_one(block_rows):
    embeddings, weights, _, _ = tied_problem(num_pictures=300)
    tops = top_probabilities(embeddings, weights, 20.0, block_rows=block_rows)
    for embedding, top in zip(embeddings.astype(np.float64), tops, strict=True):
        logits = [20.0 * float(embedding @ row) for row in weights.astype(np.float64)]
        total = math.fsum(math.exp(one) for one in logits)
        assert top == pytest.approx(math.exp(max(logits)) / total, abs=1e-6)


def test_a_softmax_has_equal_bits_on_any_number_of_threads_and_survives_a_large_scale():
    embeddings, weights, _, _ = tied_problem(num_pictures=700)
    one, two = (top_probabilities(embeddings, weights, 1e4, num_threads=n) for n in (1, 2))
    assert one.tobytes() == two.tobytes()
    assert ((one > 0) & (one <= 1)).all()


def test_classes_on_disk_in_half_precision_are_read_block_by_block(tmp_path: Path):
    embeddings, weights, entity_ids, truths = tied_problem()
    np.save(tmp_path / "half.npy", weights.astype(np.float16))
    half = weights.astype(np.float16).astype(np.float32)
    mapped = np.load(tmp_path / "half.npy", mmap_mode="r")
    for found, expected in zip(
        class_ranks(embeddings, mapped, truths, entity_ids),
        class_ranks(embeddings, half, truths, entity_ids),
        strict=True,
    ):
        assert found.tolist() == expected.tolist()
    np.testing.assert_allclose(top_probabilities(embeddings, mapped, 5.0), top_probabilities(embeddings, half, 5.0))


def test_calibration_is_its_literal_definition():
    rng = np.random.default_rng(0)
    confidences = np.concatenate([rng.random(200), np.arange(16) / 15])  # the edges of bins too
    correct = rng.random(216) < 0.5
    found = calibration(confidences, correct)
    error = 0.0
    for number in range(15):
        inside = [
            (one, right)
            for one, right in zip(confidences, correct, strict=True)
            if number / 15 < one <= (number + 1) / 15 or (number == 0 and one == 0)
        ]
        assert found.num_pictures[number] == len(inside)
        mean, accuracy = np.mean([one for one, _ in inside]), np.mean([right for _, right in inside])
        assert found.mean_confidences[number] == pytest.approx(mean)
        assert found.accuracies[number] == pytest.approx(accuracy)
        error += len(inside) / 216 * abs(mean - accuracy)
    assert found.error == pytest.approx(error, abs=1e-12)


def test_empty_bins_count_for_nothing():
    found = calibration(np.array([0.9, 0.9]), np.array([True, False]))
    assert found.error == pytest.approx(0.4)
    assert found.num_pictures.sum() == found.num_pictures[13] == 2
    assert found.accuracies[0] == found.mean_confidences[0] == 0


@pytest.mark.parametrize("confidences", [[], [1.1], [-0.1], [np.nan]])
def test_a_confidence_that_is_no_probability_is_an_error(confidences):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration(np.array(confidences), np.ones(len(confidences), bool))


def test_limits_belong_to_the_more_frequent_group():
    assert frequency_groups(np.array([0, 9, 10, 99, 100])).tolist() == ["tail", "tail", "middle", "middle", "head"]
    assert frequency_groups(np.array([0, 9]), tail_below=0, head_from=0).tolist() == ["head", "head"]
    with pytest.raises(UserError, match="tail is below 5 pictures and head from 3"):
        frequency_groups(np.array([1]), tail_below=5, head_from=3)


def test_classes_that_do_not_fit_are_an_error():
    embeddings, weights, entity_ids, truths = tied_problem()
    with pytest.raises(UserError, match="60 classes and 59 entity ids"):
        class_ranks(embeddings, weights, truths, entity_ids[:-1])
    with pytest.raises(UserError, match="width 7 and classes 8"):
        class_ranks(embeddings[:, :7], weights, truths, entity_ids)
    with pytest.raises(UserError, match="60 classes have 59 entity ids"):
        class_ranks(embeddings, weights, truths, [entity_ids[1], *entity_ids[1:]])


@pytest.mark.parametrize("broken", ["embeddings", "weights"])
def test_a_value_that_is_not_finite_is_an_error(broken):
    embeddings, weights, entity_ids, truths = tied_problem()
    (embeddings if broken == "embeddings" else weights)[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        class_ranks(embeddings, weights, truths, entity_ids)
    with pytest.raises(ValueError, match="not finite"):
        top_probabilities(embeddings, weights, 1.0)


def test_accuracy_counts_ranks_up_to_k():
    assert accuracy_at(np.array([1, 5, 6]), 5) == pytest.approx(2 / 3)
