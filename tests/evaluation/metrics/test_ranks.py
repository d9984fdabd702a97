import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from evaluation.metrics import ranks as ranks_module
from evaluation.metrics.ranks import (
    _bucket,
    _count,
    _Few,
    _table,
    average_precision,
    exact_similarities,
    ranks_without,
    rounding,
    target_ranks,
)
from tests.evaluation.metrics.references import unit


def slow_ranks(queries, gallery, targets):
    """The whole ranking of each query, by Python's floats."""
    ranks = []
    for query, own in zip(queries, targets, strict=True):
        similarities = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in gallery]
        ranking = sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))
        ranks.append([ranking.index(position) + 1 for position in own])
    return ranks


def listed(ranks):
    return [own.tolist() for own in ranks]


def hard_gallery(random, dim=24):
    """Rows of which many are equal, and many equal but for the last digits."""
    gallery = unit(random, (300, dim))
    gallery[150:220] = gallery[random.integers(0, 20, 70)]
    gallery[220:250] = gallery[3] + 1e-8 * random.normal(size=(30, dim)).astype(np.float32)
    return gallery


@pytest.mark.parametrize("most", [10, 60])  # few targets are compared, many looked up
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("block_rows", [None, 37, 128])
def test_ranks_equal_the_slow_twin_with_ties_whatever_the_blocks_and_threads(most, num_threads, block_rows):
    random = np.random.default_rng(most)
    gallery = hard_gallery(random)
    queries = np.concatenate([gallery[:12], unit(random, (5, 24))])
    targets = [random.choice(300, number % (most + 1), replace=False) for number in range(0, 17 * 7, 7)]
    with threadpool_limits(num_threads, "blas"):
        ranks = target_ranks(queries, gallery, targets, num_threads=num_threads, block_rows=block_rows)
    assert listed(ranks) == slow_ranks(queries, gallery, targets)
    assert {one.dtype for one in ranks} == {np.dtype(np.int64)}
    assert max(map(len, targets)) > most / 2 and min(map(len, targets)) == 0


@pytest.mark.parametrize("most", [10, 60])
def test_an_encoder_that_gives_all_pictures_one_embedding_ranks_them_by_position(most):
    gallery = np.repeat(unit(np.random.default_rng(0), (1, 40)), 500, axis=0)
    targets = [np.arange(499, 499 - most, -1)] * 3
    for block_rows in (None, 100):
        ranks = target_ranks(gallery[:3], gallery, targets, block_rows=block_rows)
        assert listed(ranks) == [[position + 1 for position in own] for own in targets]


@pytest.mark.parametrize("most", [10, 60])
def test_many_doubtful_pairs_are_settled_in_turns(most, monkeypatch):
    random = np.random.default_rng(1)
    gallery = hard_gallery(random)
    targets = [random.choice(300, most, replace=False) for _ in range(20)]
    expected = slow_ranks(gallery[:20], gallery, targets)
    monkeypatch.setattr("evaluation.metrics.ranks._MAX_WAITING", 20)
    assert listed(target_ranks(gallery[:20], gallery, targets)) == expected
    # Three queries of ten targets among 384 columns are compared at a time, and two in the end.
    monkeypatch.setattr("evaluation.metrics.ranks._MASK_BYTES", 3 * 10 * 384)
    for num_threads, waiting in ((1, 20), (1, 1 << 16), (2, 20)):
        monkeypatch.setattr("evaluation.metrics.ranks._MAX_WAITING", waiting)
        assert listed(target_ranks(gallery[:20], gallery, targets, num_threads=num_threads)) == expected


def test_queries_of_float64_are_ranked_as_the_float32_that_they_are_rounded_to():
    # As float32 the query is (1/2, 1/2), and both rows are as similar: the first comes first. Unrounded, it would not.
    gallery = np.array([[0.6, 0.8], [0.8, 0.6]], np.float32)
    assert listed(target_ranks(np.array([[0.5 + 1e-9, 0.5]]), gallery, [[1]])) == [[2]]
    assert listed(target_ranks(np.array([[0.5 + 1e-9, 0.5]]), gallery, [[1] * 40])) == [[2] * 40]


@pytest.mark.parametrize("most", [10, 60])
@pytest.mark.parametrize(("block_rows", "num_threads"), [(None, 1), (None, 2), (37, 2), (128, 1)])
def test_queries_that_do_not_fit_into_memory_are_compared_in_turns(most, block_rows, num_threads, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.ranks._BLOCK_SIMILARITIES", 3 * 384)  # three of 20, two in the end
    random = np.random.default_rng(11)
    gallery = hard_gallery(random)
    queries = np.concatenate([gallery[:15], unit(random, (5, 24))])
    targets = [random.choice(300, most, replace=False) for _ in range(20)]
    ranks = target_ranks(queries, gallery, targets, block_rows=block_rows, num_threads=num_threads)
    assert listed(ranks) == slow_ranks(queries, gallery, targets)


@pytest.mark.parametrize(("block_rows", "num_threads"), [(None, 1), (37, 1), (37, 2), (200, 2)])
def test_progress_is_that_of_the_gallery(block_rows, num_threads, monkeypatch):
    seen: list[object] = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            seen.append("closed")

        def update(self, count):
            seen.append(count)

    def progress(*arguments):
        seen.append(arguments)
        return Bar()

    monkeypatch.setattr("evaluation.metrics.ranks.progress", progress)
    gallery = unit(np.random.default_rng(0), (300, 4))
    target_ranks(gallery[:3], gallery, [[0], [1], [2]], block_rows=block_rows, num_threads=num_threads)
    assert seen[0] == (300, "rank", "row") and seen[-1] == "closed"
    assert sum(seen[1:-1]) == 300 and len(seen) == 2 + -(-300 // (block_rows or 300))


def test_one_target_beside_queries_of_many_and_of_none_is_ranked():
    random = np.random.default_rng(7)
    gallery, queries = unit(random, (80, 8)), unit(random, (4, 8))
    targets = [[], [41], [0.0, 79.0], random.permutation(80)[:40]]
    ranks = target_ranks(queries, gallery, targets)
    assert listed(ranks) == slow_ranks(queries, gallery, [[], [41], [0, 79], targets[3].tolist()])


@pytest.mark.parametrize("most", [10, 60])
def test_targets_at_the_edges_of_blocks_and_opposite_to_the_query_are_ranked(most):
    random = np.random.default_rng(8)
    gallery = unit(random, (300, 24))
    gallery[[5, 128, 299]] = -gallery[0]
    edges = [0, 5, 127, 128, 129, 255, 256, 299]
    targets = [np.array(edges + list(range(10, 10 + most - 8)))] * 2
    for block_rows in (None, 128):
        found = target_ranks(gallery[:2], gallery, targets, block_rows=block_rows)
        assert listed(found) == slow_ranks(gallery[:2], gallery, targets)


@pytest.mark.parametrize(("most", "exact"), [(10, "_exact"), (60, "_exact_to")])
def test_only_rows_that_are_near_a_target_are_compared_again(most, exact, monkeypatch):
    num_pairs = 0
    compare = getattr(ranks_module, exact)

    def counted(*arguments):
        nonlocal num_pairs
        num_pairs += len(arguments[-1])
        return compare(*arguments)

    monkeypatch.setattr(ranks_module, exact, counted)
    random = np.random.default_rng(9)
    gallery, queries = unit(random, (5000, 24)), unit(random, (6, 24))
    targets = [random.choice(5000, most, replace=False) for _ in range(6)]
    target_ranks(queries, gallery, targets)
    # Each target twice at most: alone, and as a row that is near itself. Of the 30,000 pairs few are as near as 6e-6.
    assert num_pairs < 2 * 6 * most + 20


def test_counts_do_not_overflow_in_wide_blocks():
    assert _count(np.ones((1, 2, 8 * 16 * 300), bool)).tolist() == [[38_400, 38_400]]


def test_a_table_says_how_many_targets_are_above_or_that_it_does_not_tell():
    # Buckets of width 1/4 from -1 to 1. A target at 0.5, between two buckets: those are unsure (2), as are the first
    # and the last, where all that is outside comes; below them one target is above.
    assert _table(np.array([-0.5]), 8).tolist() == [2, 1, 1, 1, 1, 2, 2, 2]
    # Targets at 0.6 and -0.6, within their buckets 6 and 1.
    assert _table(np.array([-0.6, 0.6]), 8).tolist() == [3, 3, 1, 1, 1, 1, 3, 3]
    assert _bucket(np.array([-1, -0.76, 0, 0.99, 1.1], np.float32), 8).tolist() == [0, 0, 4, 7, 8]
    for num_targets, dtype in ((64_999, np.uint16), (65_000, np.uint32)):
        table = _table(np.linspace(-1, 1, num_targets), 8)
        assert table.dtype == dtype and table.max() == num_targets + 1


@pytest.mark.parametrize("num_buckets", [1 << 14, 1 << 18])
def test_a_table_never_tells_where_a_product_is_off_by_nearly_all_that_is_allowed_for(num_buckets):
    falling = np.sort(np.random.default_rng(10).uniform(-1, 1, 20_000))
    for share in (-0.999, -0.5, 0, 0.5, 0.999):
        products = (-falling + share * rounding(falling)).astype(np.float32)
        told = _table(falling, num_buckets).take(_bucket(products, num_buckets), mode="clip")
        assert (told == 20_001).all()


def test_tables_that_are_made_for_each_block_give_the_same(monkeypatch):
    random = np.random.default_rng(2)
    gallery = hard_gallery(random)
    targets = [random.choice(300, 50, replace=False) for _ in range(20)]
    kept = target_ranks(gallery[:20], gallery, targets, block_rows=70)
    monkeypatch.setattr("evaluation.metrics.ranks._KEPT_TABLES", 0)
    assert listed(target_ranks(gallery[:20], gallery, targets, block_rows=70)) == listed(kept)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("most", [10, 60])
def test_a_gallery_on_disk_gives_the_same(tmp_path, dtype, most, monkeypatch):
    monkeypatch.setattr("evaluation.metrics.blocks.IN_MEMORY_VALUES", 0)
    random = np.random.default_rng(3)
    gallery, queries = hard_gallery(random).astype(dtype), unit(random, (8, 24))
    np.save(tmp_path / "gallery.npy", gallery)
    targets = [random.choice(300, most, replace=False) for _ in range(8)]
    on_disk = target_ranks(queries, np.load(tmp_path / "gallery.npy", mmap_mode="r"), targets, block_rows=64)
    assert listed(on_disk) == slow_ranks(queries, gallery.astype(np.float32), targets)


def test_the_rounding_that_is_allowed_for_grows_from_similarity_0_to_1():
    assert rounding(np.array([0.0, 1.0, -1.0])).tolist() == pytest.approx([1.5e-6, 3e-6, 3e-6])


def test_float32_products_are_well_within_the_rounding_that_is_allowed_for():
    random = np.random.default_rng(4)
    for dim in (64, 768, 2048):
        for rows in (random.normal(size=(400, dim)) ** 5, 1 + 1e-3 * random.normal(size=(400, dim))):
            rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
            exact = rows.astype(np.float64) @ rows.astype(np.float64).T
            assert (np.abs(rows @ rows.T - exact) < 0.6 * rounding(exact)).all()
        # Terms of one sign, then as many of the other: the sum grows to 0.5, and falls to about 0.
        left = np.abs(unit(random, (400, dim)))
        right = left * np.where(np.arange(dim) < dim // 2, 1, -1).astype(np.float32)
        exact = left.astype(np.float64) @ right.astype(np.float64).T
        assert (np.abs(left @ right.T - exact) < rounding(exact)).all()


@pytest.mark.parametrize("block_rows", [128, 64])
def test_ranks_stand_when_each_product_is_off_by_nearly_all_that_is_allowed_for(block_rows):
    random = np.random.default_rng(6)
    near = 0.5 * np.eye(1, 24, dtype=np.float64) + 1e-6 * random.normal(size=(128, 24))
    near[:, 1] = np.sqrt(1 - np.square(near).sum(axis=1) + np.square(near[:, 1]))
    gallery = near.astype(np.float32)  # similarities to the first axis are 0.5, but for some 1e-6
    queries = np.eye(1, 24, dtype=np.float32)
    targets = [np.arange(0, 128, 13)]
    found = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    found += 0.95 * rounding(found) * np.where(random.random(128) < 0.5, 1, -1)
    few = _Few(queries, gallery, targets, block_rows)
    for start in range(0, 128, block_rows):
        padded = np.full((1, 128), -np.inf, np.float32)
        padded[:, :block_rows] = found[:, start : start + block_rows]
        few.add(padded, 0, gallery[start : start + block_rows], start)
    assert (1 + few.before()).tolist() == slow_ranks(queries, gallery, targets)[0]


def test_exact_similarities_of_equal_rows_are_equal_wherever_they_stand():
    rows = unit(np.random.default_rng(5), (1, 771))
    found = [exact_similarities(np.repeat(rows, n, axis=0), np.repeat(rows, n, axis=0)) for n in (1, 7, 64)]
    assert len(set(np.concatenate(found).tolist())) == 1


def test_junk_leaves_the_ranking():
    # Of ranks 2, 5, 9 with junk at 1, 3, 4, 20: one, three, three of them come before.
    assert ranks_without(np.array([2, 5, 9]), np.array([20, 4, 1, 3])).tolist() == [1, 2, 6]
    assert ranks_without(np.array([2, 5]), np.array([], int)).tolist() == [2, 5]


def test_average_precision_is_the_mean_of_the_precisions_at_the_targets():
    # Ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3 = 29/36, in any order.
    assert average_precision(np.array([4, 1, 3])) == pytest.approx(29 / 36)
    assert average_precision(np.array([4])) == 0.25
    with pytest.raises(ValueError, match="^average precision needs at least 1 match in the ranking, there is none$"):
        average_precision(np.zeros(0, int))


def test_nothing_to_rank_is_no_error():
    rows = np.eye(3, dtype=np.float32)
    nothing = target_ranks(rows, rows, [[], [], []])
    assert listed(nothing) == [[], [], []] and {one.dtype for one in nothing} == {np.dtype(np.int64)}
    assert target_ranks(rows[:0], rows, []) == []


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_bad_input_is_named():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"must be \[q, dim\]"):
        target_ranks(rows[:, :2], rows, [[0]] * 3)
    for one_row in ((rows[0], rows), (rows, rows[0])):
        with pytest.raises(ValueError, match=r"^queries .* and gallery .* must be \[q, dim\] and \[n, dim\]$"):
            target_ranks(*one_row, [[0]] * 3)
    with pytest.raises(ValueError, match="targets of 2 queries, and 3 queries"):
        target_ranks(rows, rows, [[0]] * 2)
    for outside in (3, -1):
        with pytest.raises(ValueError, match=f"target {outside} is outside the gallery of 3 rows"):
            target_ranks(rows, rows, [[0], [outside], [1]])
    for value in (np.nan, np.inf):
        for most in (1, 40):
            with pytest.raises(ValueError, match="^an embedding is not finite; embed again$"):
                target_ranks(rows, np.where(rows == 0, rows, value), [[0] * most] * 3)
        with pytest.raises(ValueError, match="^an embedding is not finite; embed again$"):
            target_ranks(rows * value, rows, [[0]] * 3)
