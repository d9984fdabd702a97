import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics.classes import (
    accuracy_at,
    accuracy_items,
    calibration,
    class_average_precisions,
    class_embeddings,
    class_ranks,
    frequency_groups,
    hits_at,
    top_probabilities,
    true_class_ranks,
)
from pipeline.schema import UserError
from tests.evaluation.metrics.references import (
    embed,
    exact_unit_vectors,
    literal_order,
    normalised,
    tied_problem,
)


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
    with pytest.raises(ValueError, match="^a score is NaN; fit again$"):
        hits_at(np.array([[np.nan, 1.0]]), np.array([0]), 1)


def accuracies(ranks, labels, num_classes):
    return {name: float(values.mean()) for name, values in accuracy_items(ranks, labels, num_classes).items()}


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


def test_templates_are_normalised_before_and_after_their_mean():
    # cat: (1, 0) and (0, 1) -> mean (.5, .5) -> (1, 1) / sqrt 2. The longer vector has no more say.
    result = class_embeddings(embed, ["cat", "dog"], ["{}", "a {}"])
    np.testing.assert_allclose(result, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)


def test_the_name_goes_where_either_kind_of_braces_is():
    asked = []

    def note(texts):
        asked.extend(texts)
        return np.ones((len(texts), 2))

    class_embeddings(note, ["{c} cat"], ["a {c}.", "a {}."])
    assert asked == ["a {c} cat.", "a {c} cat."]
    with pytest.raises(UserError, match=r"'a photo' has no \{\} or \{c\}"):
        class_embeddings(note, ["cat"], ["a {}", "a photo"])


def test_classes_with_one_name_have_one_embedding_to_the_last_bit():
    random = np.random.default_rng(0)
    result = class_embeddings(lambda texts: random.normal(size=(len(texts), 8)), ["dog", "cat", "dog"], ["{}", "a {}"])
    assert (result[0] == result[2]).all() and not (result[0] == result[1]).any()


def test_a_broken_text_embedding_names_the_text():
    with pytest.raises(UserError, match="'nan'"):
        class_embeddings(embed, ["nan"])
    with pytest.raises(UserError, match="'cat' has norm 0"):
        class_embeddings(embed, ["cat"], ["{}", "not {}"])


def test_a_class_ranks_all_pictures_and_one_that_none_shows_counts_0():
    # Class 0 ranks the pictures 0, 2, 1 (1.0, 0.8, 0.0) and is shown by 2 and 1: (1/2 + 2/3) / 2 = 7/12. Class 1 ranks
    # them 1, 2, 0 and is shown by 1: 1. Class 2 ties with class 1 and is shown by none.
    embeddings = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    truths = np.array([[False, False, False], [True, True, False], [True, False, False]])
    classes = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    found = class_average_precisions(embeddings, truths, classes)
    assert found.tolist() == pytest.approx([7 / 12, 1, 0])


def test_average_precisions_of_classes_equal_the_slow_definition_with_ties():
    random = np.random.default_rng(3)
    embeddings, classes = exact_unit_vectors(random, 60), exact_unit_vectors(random, 12)
    truths = random.random((60, 12)) < 0.2
    truths[:, 4] = False
    expected = []
    for one in range(12):
        order = sorted(range(60), key=lambda row: (-float(embeddings[row] @ classes[one]), row))
        shown = [truths[row, one] for row in order]
        precisions = [sum(shown[: place + 1]) / (place + 1) for place in range(60) if shown[place]]
        expected.append(sum(precisions) / len(precisions) if precisions else 0)
    for num_threads in (1, 2):
        found = class_average_precisions(embeddings, truths, classes, num_threads=num_threads)
        assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("truths", [np.ones((2, 2), bool), np.ones((3, 3), bool), np.ones((3, 2), int)])
def test_truths_that_are_no_table_of_pictures_and_classes_are_refused(truths):
    with pytest.raises(
        ValueError, match=r"^truths are .*; bool \[3, 2\] is needed, a row per picture and a column per"
    ):
        class_average_precisions(np.ones((3, 1), np.float32), truths, np.ones((2, 1), np.float32))


def test_a_picture_that_is_not_finite_is_refused_with_several_labels():
    with pytest.raises(ValueError, match="not finite"):
        class_average_precisions(np.full((1, 1), np.nan), np.ones((1, 1), bool), np.ones((1, 1), np.float32))


def test_six_classes_have_an_accuracy_at_5_and_five_have_none():
    assert accuracies(np.array([6, 5]), np.array([0, 1]), 6)["accuracy_at_5"] == 0.5
    assert "accuracy_at_5" not in accuracies(np.array([5]), np.array([0]), 5)


def test_a_picture_without_a_true_class_has_no_ranks():
    rows = np.eye(2, dtype=np.float32)
    assert [one.tolist() for one in class_ranks(rows, rows, [[], [1]], ["b", "a"])] == [[], [1]]


def test_embeddings_of_float64_have_the_probabilities_of_the_float32_that_they_are_rounded_to():
    random = np.random.default_rng(1)
    embeddings, weights = random.standard_normal((9, 6)), normalised(random.standard_normal((40, 6)))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = top_probabilities(embeddings.astype(np.float32), weights, 30.0)
    assert top_probabilities(embeddings, weights, 30.0).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="^an embedding is not finite; embed again$"):
        top_probabilities(embeddings * np.nan, weights, 30.0)


def test_powers_are_added_up_in_float64():
    # One class at cosine 1 and 8,191 at cosine 0, at scale 3: 1 / (1 + 8,191 e^-3).
    weights = np.tile(np.array([[0, 1]], np.float32), (8192, 1))
    weights[17] = (1, 0)
    expected = 1 / (1 + 8191 * float(np.exp(np.float32(-3))))
    assert top_probabilities(np.array([[1, 0]], np.float32), weights, 3.0)[0] == pytest.approx(expected, rel=1e-12)


def test_a_bin_of_one_picture_has_its_confidence_and_accuracy():
    found = calibration(np.array([0.95]), np.array([True]), 10)
    assert found.mean_confidences[9] == pytest.approx(0.95) and found.accuracies[9] == 1
    assert found.error == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"^confidences must lie in \[0, 1\], and one at least must be given$"):
        calibration(np.array([]), np.array([]), 10)


def test_texts_are_averaged_in_float32_and_a_vector_of_next_to_no_length_is_refused():
    vectors = np.random.default_rng(2).normal(size=(4, 8))
    found = class_embeddings(lambda texts: vectors, ["cat", "dog"], ["{}", "a {}"])
    expected = class_embeddings(lambda texts: vectors.astype(np.float32), ["cat", "dog"], ["{}", "a {}"])
    assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()
    with pytest.raises(UserError, match="^the embedding of the text 'cat' has norm"):
        class_embeddings(lambda texts: np.array([[1e-6, 0]]), ["cat"])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16])
def test_labels_may_be_of_any_integer_type(dtype):
    assert hits_at(np.array([[0.5, 1.0], [0.5, 1.0]]), np.array([1, 0], dtype), 1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([-1], 1, "label -1 is outside 0 to 1; number the classes from 0"),
        ([2], 1, "label 2 is outside 0 to 1; number the classes from 0"),
        ([0.5], 1, "labels are float64; they must be integers from 0 to 1"),
        ([0, 1], 1, r"scores \(1, 2\) and labels \(2,\) must be \[n, classes\] and \[n\]"),
        ([0], 0, "k is 0; it must be at least 1"),
    ],
)
def test_hits_of_bad_labels_or_of_no_place_are_an_error(labels, k, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        hits_at(np.array([[0.5, 1.0]]), np.array(labels), k)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (0.9, "labels are float64; they must be integers from 0 to 1"),
        (2, "label 2 is outside 0 to 1; number the classes from 0"),
    ],
)
def test_a_label_that_is_no_class_has_no_rank(label, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        true_class_ranks(np.eye(1, 2, dtype=np.float32), np.array([label]), np.eye(2, dtype=np.float32))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_not_finite_and_above_0_is_an_error(scale):
    with pytest.raises(ValueError, match=f"^scale is {scale}; it must be finite and above 0$"):
        top_probabilities(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), scale)


def test_calibration_needs_a_bin():
    with pytest.raises(ValueError, match="^num_bins is 0; it must be at least 1$"):
        calibration(np.array([0.5]), np.array([True]), 0)
    one = calibration(np.array([0.5, 0.9]), np.array([True, False]), 1)
    assert one.num_pictures.tolist() == [2] and one.error == pytest.approx(0.7 - 0.5)


@pytest.mark.parametrize(("names", "templates", "counts"), [([], ["{}"], (0, 1)), (["cat"], [], (1, 0))])
def test_class_embeddings_need_a_name_and_a_template(names, templates, counts):
    message = f"^there are {counts[0]} names and {counts[1]} templates; give at least one each$"
    with pytest.raises(ValueError, match=message):
        class_embeddings(embed, names, templates)
