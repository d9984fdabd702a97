import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from evaluation.metrics.ranks import _Few, average_precision, exact_similarities, ranks_without, rounding, target_ranks


def slow_ranks(queries, gallery, targets):
    """The whole ranking of each query, by Python's floats."""
    ranks = []
    for query, own in zip(queries, targets, strict=True):
        similarities = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in gallery]
        ranking = sorted(range(len(gallery)), key=lambda position: (-similarities[position], position))
        ranks.append([ranking.index(position) + 1 for position in own])
    return ranks


def unit(random, shape):
    rows = random.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


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
    monkeypatch.setattr("evaluation.metrics.ranks._MAX_WAITING", 20)
    random = np.random.default_rng(1)
    gallery = hard_gallery(random)
    targets = [random.choice(300, most, replace=False) for _ in range(20)]
    assert listed(target_ranks(gallery[:20], gallery, targets)) == slow_ranks(gallery[:20], gallery, targets)


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
    with pytest.raises(ValueError, match="at least 1 match"):
        average_precision(np.zeros(0, int))


def test_nothing_to_rank_is_no_error():
    rows = np.eye(3, dtype=np.float32)
    assert listed(target_ranks(rows, rows, [[], [], []])) == [[], [], []]
    assert target_ranks(rows[:0], rows, []) == []


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_bad_input_is_named():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"must be \[q, dim\]"):
        target_ranks(rows[:, :2], rows, [[0]] * 3)
    with pytest.raises(ValueError, match="targets of 2 queries, and 3 queries"):
        target_ranks(rows, rows, [[0]] * 2)
    for outside in (3, -1):
        with pytest.raises(ValueError, match=f"target {outside} is outside the gallery of 3 rows"):
            target_ranks(rows, rows, [[0], [outside], [1]])
    for value in (np.nan, np.inf):
        for most in (1, 40):
            with pytest.raises(ValueError, match="not finite"):
                target_ranks(rows, np.where(rows == 0, rows, value), [[0] * most] * 3)
        with pytest.raises(ValueError, match="not finite"):
            target_ranks(rows * value, rows, [[0]] * 3)
