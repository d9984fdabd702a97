import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from evaluation.ranking import exact_similarities, ranks_without, rounding, target_ranks


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
    monkeypatch.setattr("evaluation.ranking._MAX_WAITING", 20)
    random = np.random.default_rng(1)
    gallery = hard_gallery(random)
    targets = [random.choice(300, most, replace=False) for _ in range(20)]
    assert listed(target_ranks(gallery[:20], gallery, targets)) == slow_ranks(gallery[:20], gallery, targets)


def test_tables_that_are_made_for_each_block_give_the_same(monkeypatch):
    random = np.random.default_rng(2)
    gallery = hard_gallery(random)
    targets = [random.choice(300, 50, replace=False) for _ in range(20)]
    kept = target_ranks(gallery[:20], gallery, targets, block_rows=70)
    monkeypatch.setattr("evaluation.ranking._KEPT_TABLES", 0)
    assert listed(target_ranks(gallery[:20], gallery, targets, block_rows=70)) == listed(kept)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("most", [10, 60])
def test_a_gallery_on_disk_gives_the_same(tmp_path, dtype, most, monkeypatch):
    monkeypatch.setattr("evaluation.blocks._IN_MEMORY_VALUES", 0)
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


def test_exact_similarities_of_equal_rows_are_equal_wherever_they_stand():
    rows = unit(np.random.default_rng(5), (1, 771))
    found = [exact_similarities(np.repeat(rows, n, axis=0), np.repeat(rows, n, axis=0)) for n in (1, 7, 64)]
    assert len(set(np.concatenate(found).tolist())) == 1


def test_junk_leaves_the_ranking():
    # Of ranks 2, 5, 9 with junk at 1, 3, 4, 20: one, three, three of them come before.
    assert ranks_without(np.array([2, 5, 9]), np.array([20, 4, 1, 3])).tolist() == [1, 2, 6]
    assert ranks_without(np.array([2, 5]), np.array([], int)).tolist() == [2, 5]


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
