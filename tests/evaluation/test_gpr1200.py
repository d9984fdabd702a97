import numpy as np
import pytest

from evaluation.errors import UserError
from evaluation.gpr1200 import average_precisions, categories_of, gpr1200_metrics

NAMES = sorted(f"{category}_{number}.jpg" for category in range(1200) for number in range(10))


def slow_average_precision(embeddings, categories, query, num_matches):
    """The definition, one rank at a time."""
    similarities = [float(row @ embeddings[query]) for row in embeddings]
    total, found = 0.0, 0
    for rank, position in enumerate(sorted(range(len(embeddings)), key=lambda p: (-similarities[p], p)), 1):
        if categories[position] == categories[query]:
            found += 1
            total += found / rank
    return total / num_matches


def test_equals_the_slow_twin_with_ties():
    random = np.random.default_rng(3)
    # Small integers: exact in float32, and full of ties.
    embeddings = random.integers(-1, 2, (300, 5)).astype(np.float32)
    categories = np.repeat(np.arange(100), 3)
    expected = [slow_average_precision(embeddings, categories, query, 3) for query in range(300)]
    np.testing.assert_allclose(average_precisions(embeddings, categories, num_matches=3), expected, rtol=1e-12)


def test_the_query_itself_is_a_match():
    # Each row finds itself, then the row of the other category, then its match: (1/1 + 2/3) / 2 for rows 0 and 2.
    angles = np.array([0.0, 0.1, 0.25])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    embeddings = np.concatenate([embeddings, [[-1, 0]]]).astype(np.float32)
    result = average_precisions(embeddings, np.array([0, 1, 0, 1]), num_matches=2)
    assert result[0] == pytest.approx((1 + 2 / 3) / 2)


def test_a_perfect_embedding_scores_1_in_every_domain():
    categories = categories_of(NAMES)
    # Each category has a direction of its own on a circle; cosines of neighbours differ by 1e-5 and more.
    angles = 2 * np.pi * categories / 1200
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    values = gpr1200_metrics(embeddings, NAMES)
    assert len(values) == 7
    assert all(value == pytest.approx(1) for value in values.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names[:-1], "has 11999 pictures, it must have 12000"),
        (lambda names: [names[1], names[0], *names[2:]], "not sorted"),
        (lambda names: [*names[:-1], "zebra.jpg"], "zebra.jpg does not start with a category"),
        (lambda names: sorted([*names[:-1], "1200_0.jpg"]), "category 1200, the last is 1199"),
        (lambda names: sorted([*names[1:], "7_x.jpg"]), "it must have 10"),
    ],
)
def test_files_that_are_not_gpr1200s_are_named(change, words):
    with pytest.raises(UserError, match=words):
        categories_of(change(NAMES))


def test_a_nan_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        average_precisions(np.array([[np.nan], [1.0]]), np.array([0, 0]), num_matches=2)
