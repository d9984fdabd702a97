import numpy as np
import pytest

from evaluation.metrics.retrieval import found_at, metrics_of_ranks, retrieval_metrics, retrieval_ranks
from tests.evaluation.metrics.references import exact_unit_vectors


def slow_recalls(images, captions, image_of):
    """The definition, a sort a query."""
    found = {}
    for k in (1, 5, 10):
        hits = []
        for image in range(len(images)):
            order = sorted(range(len(captions)), key=lambda c: (-float(images[image] @ captions[c]), c))
            hits.append(any(image_of[caption] == image for caption in order[:k]))
        found[f"image_to_text.recall_at_{k}"] = sum(hits) / len(hits)
        hits = []
        for caption in range(len(captions)):
            order = sorted(range(len(images)), key=lambda i: (-float(captions[caption] @ images[i]), i))
            hits.append(image_of[caption] in order[:k])
        found[f"text_to_image.recall_at_{k}"] = sum(hits) / len(hits)
    return found


def test_recalls_equal_the_slow_twin_with_ties_and_several_captions():
    random = np.random.default_rng(5)
    images = exact_unit_vectors(random, 50)
    image_of = random.permutation(np.concatenate([np.arange(50), random.integers(0, 50, 90)]))
    captions = np.where(random.random((140, 1)) < 0.5, images[image_of], exact_unit_vectors(random, 140))
    found = found_at(*retrieval_ranks(images, captions, image_of))
    expected = slow_recalls(images, captions, image_of)
    assert {key: float(values.mean()) for key, values in found.items()} == pytest.approx(expected, abs=1e-6)
    assert 0.05 < expected["text_to_image.recall_at_1"] < expected["text_to_image.recall_at_10"] < 1


def test_any_caption_of_a_picture_is_a_hit():
    captions = np.array([[-1, 0], [0, 1], [1, 0]], np.float32)
    image_ranks, caption_ranks = retrieval_ranks(np.array([[1, 0], [0, 1]], np.float32), captions, np.array([0, 1, 0]))
    assert image_ranks.tolist() == [1, 1]
    assert caption_ranks.tolist() == [2, 1, 1]


def test_a_picture_without_a_caption_is_never_found_and_distracts_the_captions_of_others():
    images = np.array([[0, 1], [1, 0], [0.6, 0.8]], np.float32)
    captions = np.array([[0, 1], [0.6, 0.8]], np.float32)
    image_ranks, caption_ranks = retrieval_ranks(images, captions, np.array([0, 0]))
    # Pictures 1 and 2 have no caption. Caption 1 is closer to picture 2 (1.0) than to its own (0.8).
    assert image_ranks[0] == 1 and (image_ranks[1:] > 10**12).all()
    assert caption_ranks.tolist() == [1, 2]
    found = found_at(image_ranks, caption_ranks)
    assert found["image_to_text.recall_at_10"].tolist() == [1, 0, 0]
    assert {one.dtype for one in found.values()} == {np.dtype(np.float32)}
    assert found["text_to_image.recall_at_1"].tolist() == [1, 0]


def test_pictures_without_any_caption_are_never_found():
    image_ranks, caption_ranks = retrieval_ranks(np.eye(2, dtype=np.float32), np.zeros((0, 2), np.float32), np.zeros(0))
    assert (image_ranks > 10**12).all() and caption_ranks.tolist() == []
    assert image_ranks.dtype == caption_ranks.dtype == np.int64


@pytest.mark.parametrize(
    ("image_of", "message"),
    [
        ([0, 2], "^a caption is of picture 2; there are 2 pictures, from 0$"),
        ([-1, 0], "^a caption is of picture -1; there are 2 pictures, from 0$"),
        ([0], "^1 pictures for 2 captions; name one for each$"),
    ],
)
def test_a_caption_of_no_picture_is_refused(image_of, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.array(image_of))


RANKS = [np.array([4, 1, 3]), np.array([], int), np.array([2])]


def test_metrics_of_ranks_by_hand():
    found = metrics_of_ranks(RANKS, ks=(1, 2, 3))
    assert found.queries.tolist() == [0, 2] and found.num_without_positives == 1
    items = {name: pytest.approx(values.tolist()) for name, values in found.items.items()}
    assert items == {
        # Ranks 1, 3, 4: (1/1 + 2/3 + 3/4) / 3 = 29/36. Rank 2: 1/2.
        "map": [29 / 36, 1 / 2],
        # Divided by min(3 positives, k): 1/1, 1/2, (1 + 2/3)/3 = 5/9; of the other, 0 and 1/2 by min(1, k) = 1.
        "map_at_1": [1, 0],
        "map_at_2": [1 / 2, 1 / 2],
        "map_at_3": [5 / 9, 1 / 2],
        "recall_at_1": [1 / 3, 0],
        "recall_at_2": [1 / 3, 1],
        "recall_at_3": [2 / 3, 1],
        "accuracy_at_1": [1, 0],
        "accuracy_at_2": [1, 1],
        "accuracy_at_3": [1, 1],
    }
    assert found.metrics["map"] == pytest.approx((29 / 36 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("divisor", "expected"),
    [
        ("reachable", [1 / 2, 1 / 2]),  # min(3, 2) = 2, and min(1, 2) = 1
        ("positives", [1 / 3, 1 / 2]),  # 3, and 1
        ("found", [1, 1 / 2]),  # one of the first two each
    ],
)
def test_average_precision_at_k_is_divided_as_asked(divisor, expected):
    found = metrics_of_ranks(RANKS, ks=(2,), divisor=divisor)
    assert found.items["map_at_2"].tolist() == pytest.approx(expected)
    assert metrics_of_ranks([np.array([9])], ks=(2,), divisor=divisor).items["map_at_2"].tolist() == [0]


def test_queries_without_positives_count_0_where_that_is_asked_for():
    found = metrics_of_ranks(RANKS, ks=(1,), without_positives="zero")
    assert found.queries.tolist() == [0, 1, 2] and found.num_without_positives == 1
    assert found.items["map"].tolist() == pytest.approx([29 / 36, 0, 1 / 2])
    assert found.metrics["accuracy_at_1"] == pytest.approx(1 / 3)
    assert metrics_of_ranks([RANKS[1]], ks=(1,)).metrics == {}
    assert metrics_of_ranks([RANKS[1]], without_positives="zero").metrics["recall_at_10"] == 0


def test_without_queries_there_is_no_metric():
    found = metrics_of_ranks([])
    assert found.queries.tolist() == [] and found.metrics == {} and found.num_without_positives == 0


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="^'all' is not one of reachable, positives, found$"):
        metrics_of_ranks(RANKS, divisor="all")
    with pytest.raises(ValueError, match="^'one' is not one of leave_out, zero$"):
        metrics_of_ranks(RANKS, without_positives="one")


def test_ranks_and_ks_start_at_1():
    with pytest.raises(ValueError, match=r"^ks are \(1, 0\); each must be at least 1$"):
        metrics_of_ranks(RANKS, ks=(1, 0))
    with pytest.raises(ValueError, match="^a rank is under 1; ranks start at 1$"):
        metrics_of_ranks([np.array([1]), np.array([2, 0])])


def slow_retrieval(similarities, is_positive, ks):
    """The definitions, one place of one ranking at a time; None without positives."""
    order = sorted(range(len(similarities)), key=lambda row: (-similarities[row], row))
    num_positives = sum(is_positive)
    if num_positives == 0:
        return None
    found: dict[str, float] = {"map": 0.0}
    for k in ks:
        found |= {f"map_at_{k}": 0.0, f"recall_at_{k}": 0.0, f"accuracy_at_{k}": 0.0}
    seen = 0
    for place, row in enumerate(order, 1):
        if is_positive[row]:
            seen += 1
            found["map"] += seen / place / num_positives
            for k in ks:
                if place <= k:
                    found[f"map_at_{k}"] += seen / place / min(num_positives, k)
                    found[f"recall_at_{k}"] += 1 / num_positives
                    found[f"accuracy_at_{k}"] = 1.0
    return found


@pytest.mark.parametrize("setting", ["gallery", "self in", "self out"])
@pytest.mark.parametrize("text", [False, True])
def test_metrics_of_embeddings_equal_the_slow_definitions_with_ties(setting, text):
    random = np.random.default_rng(8)
    queries, gallery = exact_unit_vectors(random, 40), exact_unit_vectors(random, 70)
    query_labels, gallery_labels = random.integers(0, 30, 40), random.integers(0, 30, 70)
    if text:
        query_labels, gallery_labels = query_labels.astype(str), gallery_labels.astype(str)
    expected = []
    for number in range(40):
        rows, labels = (gallery, gallery_labels) if setting == "gallery" else (queries, query_labels)
        there = [row for row in range(len(rows)) if setting != "self out" or row != number]
        similarities = [float(rows[row] @ queries[number]) for row in there]
        expected.append(slow_retrieval(similarities, [labels[row] == query_labels[number] for row in there], (1, 5)))
    if setting == "gallery":
        found = retrieval_metrics(queries, query_labels, gallery, gallery_labels, ks=(1, 5), block_rows=16)
    else:
        found = retrieval_metrics(queries, query_labels, self_match=setting == "self in", ks=(1, 5), num_threads=1)
    assert found.queries.tolist() == [number for number, one in enumerate(expected) if one is not None]
    assert found.num_without_positives == expected.count(None) and (setting == "self in") == (None not in expected)
    for name, values in found.items.items():
        assert values.tolist() == pytest.approx([one[name] for one in expected if one is not None])


def test_settings_of_ranks_reach_them_from_embeddings():
    rows, labels = np.eye(3, dtype=np.float32), np.array([0, 0, 1])
    found = retrieval_metrics(rows, labels, divisor="positives", without_positives="zero")
    # Row 0: itself leaves, rows 1 and 2 tie at 0, row 1 is first and right. Row 1 likewise. Row 2 has no other.
    assert found.items["accuracy_at_1"].tolist() == [1, 1, 0]
    gallery = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    found = retrieval_metrics(rows[:1], labels[:1], gallery, np.array([0, 1, 0]), ks=(1,), divisor="positives")
    # Ranks 1 and 3 of two positives: precision 1 at the first, divided by 2.
    assert found.items["map_at_1"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gallery": np.eye(2)}, "^a gallery and its labels belong together; give both or neither$"),
        ({"gallery_labels": np.zeros(2)}, "^a gallery and its labels belong together; give both or neither$"),
        (
            {"gallery": np.eye(2), "gallery_labels": np.zeros(2), "self_match": True},
            "^self_match is for queries that are the gallery; leave it out, or leave the gallery out$",
        ),
        ({"query_labels": np.zeros(3)}, "^there are 2 queries and 3 labels; give one each$"),
        (
            {"gallery": np.eye(2), "gallery_labels": np.zeros(1)},
            "^there are 2 gallery rows and 1 labels; give one each$",
        ),
        ({"queries": np.full((2, 2), np.nan)}, "not finite"),
        ({"gallery": np.full((2, 2), np.nan), "gallery_labels": np.zeros(2)}, "not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"queries": np.eye(2, dtype=np.float32), "query_labels": np.zeros(2), **arguments})


def test_rows_that_are_not_of_length_one_are_refused():
    rows, long, labels = np.eye(2, dtype=np.float32), np.array([[1, 0], [3, 4]], np.float32), np.arange(2)
    with pytest.raises(ValueError, match="^row 1 of `queries` has length 5; divide each row by its norm$"):
        retrieval_metrics(long, labels)
    with pytest.raises(ValueError, match="^row 1 of `gallery` has length 5; "):
        retrieval_metrics(rows, labels, long, labels)
    with pytest.raises(ValueError, match="^row 1 of `images` has length 5; "):
        retrieval_ranks(long, rows, labels)
    with pytest.raises(ValueError, match="^row 1 of `captions` has length 5; "):
        retrieval_ranks(rows, long, labels)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([2, 1, 2], "rank 2 of query 1 is a duplicate; give each rank once"),
        ([1.0, np.nan], "a rank of query 1 is NaN; give whole numbers from 1"),
    ],
)
def test_duplicate_ranks_and_nan_are_an_error(own, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        metrics_of_ranks([np.array([1]), np.array(own)])


def test_one_k_may_be_a_number():
    found, expected = metrics_of_ranks(RANKS, ks=2).metrics, metrics_of_ranks(RANKS, ks=(2,)).metrics
    assert found == expected and "map_at_2" in found
    rows, labels = np.eye(2, dtype=np.float32), np.array([0, 0])
    assert retrieval_metrics(rows, labels, ks=1).metrics == retrieval_metrics(rows, labels, ks=(1,)).metrics
