import re
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from evaluation import progress
from evaluation.metrics.nearest import _fetch, nearest
from evaluation.metrics.ranks import rounding
from tests.evaluation.metrics.references import unit


def slow_nearest(gallery, query, k):
    similarities = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in gallery]
    return sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))[:k]


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


def test_ties_go_to_the_smaller_position_even_past_the_cut():
    # Positions 1, 3 and 4 tie at similarity 1; the two smallest are returned.
    gallery = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    found = nearest(gallery, np.array([[1, 0]], np.float32), 2)
    assert found.positions.tolist() == [[1, 3]]
    assert found.similarities.tolist() == [[1.0, 1.0]]
    assert (found.positions.dtype, found.similarities.dtype) == (np.int64, np.float64)


def test_what_is_fetched_are_the_most_similar_rows_of_all_blocks():
    random = np.random.default_rng(0)
    gallery, queries = unit(random, (3000, 6)), unit(random, (400, 6))
    with ThreadPoolExecutor(2) as pool:
        read = [(0, gallery[:1500]), (1500, gallery[1500:])]
        positions, similarities = _fetch(read, queries, 1000, pool)
    rough = queries @ gallery.T
    np.testing.assert_allclose(np.sort(similarities), np.sort(rough)[:, -1000:], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(rough, positions), similarities, atol=1e-6)


@pytest.mark.parametrize("block_rows", [None, 30])
def test_many_equal_rows_come_in_order(block_rows):
    gallery = np.ones((500, 1), np.float32)
    found = nearest(gallery, np.ones((3, 1), np.float32), 7, block_rows=block_rows)
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 3


@pytest.mark.parametrize("block_rows", [None, 7, 32])
def test_equals_the_slow_twin_on_small_integers(block_rows, num_threads):
    random = np.random.default_rng(0)
    # Sums are exact in float32, and ties abound.
    gallery = random.integers(-2, 3, (60, 4)).astype(np.float32)
    queries = random.integers(-2, 3, (15, 4)).astype(np.float32)
    found = nearest(gallery, queries, 9, block_rows=block_rows, num_threads=num_threads)
    assert found.positions.tolist() == [slow_nearest(gallery, query, 9) for query in queries]


@pytest.mark.parametrize("block_rows", [None, 64, 100])
def test_duplicates_and_near_ties_come_in_order_whatever_the_blocks(block_rows, num_threads):
    random = np.random.default_rng(1)
    gallery = unit(random, (400, 48))
    gallery[200:260] = gallery[:60]  # equal rows far apart
    gallery[300:330] = (
        gallery[5] + random.normal(size=(30, 48)).astype(np.float32) * 1e-8
    )  # equal but for the last digits
    queries = np.concatenate([gallery[:20], unit(random, (5, 48))])
    found = nearest(gallery, queries, 12, block_rows=block_rows, num_threads=num_threads)
    assert found.positions.tolist() == [slow_nearest(gallery, query, 12) for query in queries]
    assert found.similarities[0, 0] == found.similarities[0, 1] and found.positions[0, :2].tolist() == [0, 200]


@pytest.mark.parametrize("block_rows", [None, 100])
def test_few_queries_and_pairs_may_be_merged_and_compared_at_a_time(block_rows, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.nearest._SLICE", 4)
    monkeypatch.setattr("evaluation.metrics.nearest._PAIRS", 2)  # and 64 times as many in a thread
    random = np.random.default_rng(4)
    gallery, queries = unit(random, (250, 6)), unit(random, (26, 6))
    found = nearest(gallery, queries, 12, block_rows=block_rows, num_threads=2)
    assert found.positions.tolist() == [slow_nearest(gallery, query, 12) for query in queries]


def near_ties(random, num_rows):
    """Rows whose similarities to the first axis are 0.5 but for some 1e-6, and that axis."""
    rows = 0.5 * np.eye(1, 24) + 1e-6 * random.normal(size=(num_rows, 24))
    rows[:, 1] = np.sqrt(1 - np.square(rows).sum(axis=1) + np.square(rows[:, 1]))
    return rows.astype(np.float32), np.eye(1, 24, dtype=np.float32)


@pytest.mark.parametrize("block_rows", [None, 50])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_neighbours_stand_when_each_product_is_off_by_nearly_all_that_is_allowed_for(k, block_rows, monkeypatch):
    def rough_knn(queries, block, count, metric):
        """The nearest by products of which the near ones are too small and the far ones too large."""
        assert metric == faiss.METRIC_INNER_PRODUCT
        exact = queries.astype(np.float64) @ block.T.astype(np.float64)
        off = 0.95 * rounding(exact) * np.where(exact > np.median(exact), -1, 1)
        rough = (exact + off).astype(np.float32)
        order = np.argsort(-rough, axis=1)[:, :count]
        return np.take_along_axis(rough, order, axis=1), order

    gallery, query = near_ties(np.random.default_rng(7), 200)
    monkeypatch.setattr(faiss, "knn", rough_knn)
    found = nearest(gallery, query, k, block_rows=block_rows)
    assert found.positions.tolist() == [slow_nearest(gallery, query[0], k)]


def test_neighbours_among_near_ties_are_those_of_exact_arithmetic():
    random = np.random.default_rng(13)
    for _ in range(60):
        # Rows that differ in the last digits only: float32 products have them in another order.
        gallery = unit(random, (1, 64)) + 2e-8 * random.normal(size=(50, 64)).astype(np.float32)
        query = unit(random, (1, 64))
        assert nearest(gallery, query, 5).positions.tolist() == [slow_nearest(gallery, query[0], 5)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_gallery_on_disk_gives_what_one_in_memory_gives(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.blocks.IN_MEMORY_VALUES", 0)
    random = np.random.default_rng(2)
    gallery = unit(random, (300, 16)).astype(dtype)
    np.save(tmp_path / "gallery.npy", gallery)
    queries = unit(random, (9, 16))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    for rows in (slice(None), slice(17, 250)):
        from_disk = nearest(mapped[rows], queries, 5, block_rows=64)
        expected = nearest(gallery[rows].astype(np.float32), queries, 5)
        np.testing.assert_array_equal(from_disk.positions, expected.positions)
        np.testing.assert_array_equal(from_disk.similarities, expected.similarities)


def test_queries_with_too_many_neighbours_for_memory_are_asked_in_turns(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.nearest._MAX_FETCHED", 64)
    random = np.random.default_rng(3)
    gallery, queries = unit(random, (200, 6)), unit(random, (11, 6))
    assert nearest(gallery, queries, 4).positions.tolist() == [slow_nearest(gallery, query, 4) for query in queries]


def passes(gallery, queries, k, capsys):
    """How often the gallery is read, by the progress that is shown."""
    nearest(gallery, queries.astype(np.float32), k, block_rows=20)
    lines = capsys.readouterr().err.splitlines()
    assert "search:   0%" in lines[0] and f" 0/{2 * len(gallery)} " in lines[0]
    done, total = map(int, re.search(r"search: 100%.* (\d+)/(\d+) \[.*row/s", lines[-1]).groups())
    assert done == total and done % len(gallery) == 0
    assert all(int(re.search(r"/(\d+) \[", line).group(1)) >= 2 * len(gallery) for line in lines)
    return done // len(gallery)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_gallery_is_read_twice_where_few_similarities_are_near(k, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_SEC", 0.0)
    random = np.random.default_rng(0)
    assert passes(unit(random, (50, 8)), unit(random, (200, 8)), k, capsys) == 2


def test_a_gallery_is_read_again_where_what_was_fetched_ends_within_the_rounding(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_EVERY_SEC", 0.0)
    # Of 300 rows 17 are fetched, then 68, 272, and all. Each of two similarities near 1 may be off by 3e-6.
    for gap, num_passes in ((8e-6, 2), (4e-6, 5), (0, 5)):
        gallery = np.full((300, 1), 1 - gap, np.float32)
        gallery[33] = 1
        assert passes(gallery, np.ones((1, 1)), 1, capsys) == num_passes


def test_k_is_cut_to_the_gallery_and_bad_input_is_named():
    gallery = np.eye(2, dtype=np.float32)
    assert nearest(gallery, gallery, 5).positions.shape == (2, 2)
    assert nearest(gallery, gallery[:0], 1).positions.shape == (0, 1)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(gallery, gallery, 0)
    assert nearest(gallery[:1], gallery, 1).positions.tolist() == [[0], [0]]
    for one, other in ((gallery[0], gallery), (gallery, gallery[0]), (gallery[:0], gallery)):
        with pytest.raises(ValueError, match=r"^gallery .* and queries .* must be \[n > 0, dim\] and \[m, dim\]$"):
            nearest(one, other, 1)
    # As float32 the query is (1/2, 1/2), and both rows are as similar.
    rows = np.array([[0.6, 0.8], [0.8, 0.6]], np.float32)
    assert nearest(rows, np.array([[0.5 + 1e-9, 0.5]]), 1).positions.tolist() == [[0]]
    with pytest.raises(ValueError, match="must be"):
        nearest(gallery, np.ones((1, 3), np.float32), 1)
    for one, other in ((gallery, np.full((1, 2), np.nan, np.float32)), (np.full((4, 2), np.inf), gallery)):
        with pytest.raises(ValueError, match="^an embedding is not finite; embed again$"):
            nearest(one, other, 1)
