import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.losses.tiles import add_exponents, add_exponents_at_once, num_tiles, power_of_two, tile_rows


def test_tiles_hold_all_rows():
    assert [num_tiles(rows, 4) for rows in (4, 5, 8, 9)] == [1, 2, 2, 3]


def tiles(num_rows, size):
    """The rows of each tile, and those of them that it counts."""
    numbers = jnp.arange(num_tiles(num_rows, size))
    rows, counted = jax.jit(jax.vmap(lambda number: tile_rows(number, size, num_rows)))(numbers)
    assert rows.dtype == jnp.int32
    rows, counted = np.asarray(rows), np.asarray(counted)
    return [(rows[tile].tolist(), rows[tile][counted[tile]].tolist()) for tile in range(len(rows))]


def test_the_first_tile_ends_with_the_last_row_and_counts_only_what_the_others_leave():
    assert tiles(7, 3) == [([4, 5, 6], [6]), ([0, 1, 2], [0, 1, 2]), ([3, 4, 5], [3, 4, 5])]
    assert tiles(8, 3) == [([5, 6, 7], [6, 7]), ([0, 1, 2], [0, 1, 2]), ([3, 4, 5], [3, 4, 5])]
    assert tiles(6, 3) == [([3, 4, 5], [3, 4, 5]), ([0, 1, 2], [0, 1, 2])]
    assert tiles(3, 3) == [([0, 1, 2], [0, 1, 2])]


@pytest.mark.parametrize("add", [add_exponents, add_exponents_at_once])
def test_exponents_are_added_relative_to_the_largest_logit_of_each_column(add):
    largest, total = jnp.asarray([5.0, 1.0]), jnp.asarray([2.0, 3.0])
    logits = jnp.asarray([[4.0, 2.0], [3.0, -1.0]])
    new_largest, new_total = jax.jit(add)(largest, total, logits)
    assert new_largest.tolist() == [5, 2]
    # Column 0 keeps 5 as its largest: 2 + e^(4 - 5) + e^(3 - 5); column 1 turns to 2: 3 e^(1 - 2) + 1 + e^(-1 - 2).
    expected = [2 + math.exp(-1) + math.exp(-2), 3 * math.exp(-1) + 1 + math.exp(-3)]
    np.testing.assert_allclose(new_total, expected, rtol=1e-6)


@pytest.mark.parametrize("add", [add_exponents, add_exponents_at_once])
def test_exponents_of_masked_logits_and_of_very_unlike_ones_are_finite(add):
    largest, total = jnp.asarray([-1e30, -1e30, 90.0, -1e30]), jnp.zeros(4)
    logits = jnp.asarray([[-1e30, 80.0, -90.0, -95.0], [2.0, -80.0, -1e30, -96.0], [-1e30, 80.0, -90.0, -1e30]])
    new_largest, new_total = jax.jit(add)(largest, total, logits)
    assert new_largest.tolist() == [2, 80, 90, -95]
    np.testing.assert_allclose(new_total, [1, 2, 2 * math.exp(-180), 1 + math.exp(-1)], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize(("limit", "power"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (1023, 512), (1024, 1024)])
def test_a_power_of_two_is_the_greatest_up_to_the_limit(limit, power):
    assert power_of_two(limit) == power
