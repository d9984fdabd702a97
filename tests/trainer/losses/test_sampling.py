import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.losses.sampling import NO_CLASS, make_draw
from trainer.mesh import make_mesh

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
NUM_CLASSES, NUM_ROWS, NUM_BLOCKS = 1000, 1024, 8  # of the last block, 24 of 128 rows are padding
LABELS = [0, 0, 5, 127, 128, 999, 999, 999, 640, 641, 642, 643, 644, 300, 301, 0]


@functools.cache
def compiled(mesh, rate):
    rows = {"num_classes": NUM_CLASSES, "num_rows": NUM_ROWS}
    return jax.jit(make_draw(make_mesh(*mesh), **rows, rate=rate, num_blocks=NUM_BLOCKS))


def drawn(mesh, labels=LABELS, rate=0.1, seed=0):
    return np.asarray(compiled(mesh, rate)(jax.random.key(seed), jnp.asarray(labels, jnp.int32)))


def classes(ids):
    return sorted(ids[ids != NO_CLASS].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_every_mesh_draws_the_same_classes_each_once_and_those_of_the_batch(seed):
    expected = classes(drawn((1, 1), seed=seed))
    assert len(set(expected)) == len(expected) and set(LABELS) <= set(expected) and max(expected) < NUM_CLASSES
    # 13 of each block's 128 rows, without those that are labels too or padding.
    assert 8 * 13 - 24 <= len(set(expected) - set(LABELS)) <= 8 * 13
    for mesh in MESHES[1:]:
        ids = drawn(mesh, seed=seed)
        assert classes(ids) == expected
        # Each device's classes are among its own 128 rows, so the shapes do not depend on what is drawn.
        for device, of_device in enumerate(ids.reshape(8, 13 + len(LABELS))):
            assert {number // 128 for number in of_device[of_device != NO_CLASS].tolist()} <= {device}


def test_a_block_has_room_for_the_labels_of_the_whole_batch():
    labels = list(range(256, 256 + 128))  # all rows of block 2
    for mesh in MESHES:
        assert set(labels) <= set(classes(drawn(mesh, labels)))


def test_each_seed_draws_others_and_each_class_comes_equally_often():
    times = np.zeros(NUM_CLASSES)
    for seed in range(600):
        ids = drawn((1, 1), labels=[0] * 8, seed=seed)
        times[ids[ids != NO_CLASS]] += 1
    assert times[0] == 600
    # 600 draws of 13 in 128 give 60.9 on average, with a deviation of 7.4 at most: none of 999 is six deviations off.
    assert abs(times[1:].mean() - 600 * 13 / 128) < 1
    assert np.abs(times[1:] - 600 * 13 / 128).max() < 45


def test_at_a_rate_of_almost_one_all_classes_are_drawn():
    assert classes(drawn((2, 4), rate=0.999)) == list(range(NUM_CLASSES))


def first_block(block_rows, rate, num_seeds):
    """What is drawn of the first of two blocks, as sorted rows; the one label is in the second."""
    rows = {"num_classes": 2 * block_rows, "num_rows": 2 * block_rows}
    draw = jax.jit(make_draw(make_mesh(1, 1), **rows, rate=rate, num_blocks=2))
    labels = jnp.full(1, block_rows, jnp.int32)
    for seed in range(num_seeds):
        ids = np.asarray(draw(jax.random.key(seed), labels))
        yield sorted(ids[(ids >= 0) & (ids < block_rows)].tolist())


def test_each_stretch_gives_one_row_of_all_that_it_has():
    gaps = set()
    for first, second, third in first_block(8, 0.375, 200):
        gaps |= {second - first, third - second, first + 8 - third}
    # The stretches are the rows 0 to 1, 2 to 4 and 5 to 7, turned: from 1 to 2, or from 2 to 7, and all between.
    assert gaps == {1, 2, 3, 4, 5}


def test_rows_of_stretches_of_unequal_length_have_the_same_chance():
    # Of three rows two are drawn: of the first stretch always its only row, but the block is turned by 0, 1 or 2.
    drawn_rows = [row for rows in first_block(3, 0.6, 600) for row in rows]
    times = np.bincount(drawn_rows, minlength=3)
    assert times.sum() == 1200 and abs(times - 400).max() < 60  # five deviations of 12
