import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from trainer.losses.weights import shares
from trainer.mesh import make_mesh


def shares_on(mesh, weights):
    rows, whole = PartitionSpec(("data", "model")), PartitionSpec()
    on_device = functools.partial(shares, num_rows=8)
    sharded = functools.partial(jax.shard_map, mesh=make_mesh(*mesh), check_vma=False)
    return jax.jit(sharded(on_device, in_specs=rows, out_specs=whole))(weights)


def test_without_weights_each_of_eight_rows_has_an_eighth():
    np.testing.assert_array_equal(shares(None, 8), [0.125])


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_a_share_is_the_weight_by_the_sum_of_the_whole_batch(mesh):
    # They add up to 16.
    np.testing.assert_array_equal(
        shares_on(mesh, jnp.asarray([0.0, 1, 1, 2, 4, 0, 0, 8])), np.asarray([0, 1, 1, 2, 4, 0, 0, 8]) / 16
    )


def test_small_weights_count_by_their_ratios_and_zeros_have_no_share():
    np.testing.assert_allclose(
        shares_on((1, 1), jnp.asarray([3e-20] + [1e-20] * 7)), np.asarray([3] + [1] * 7) / 10, rtol=1e-6
    )
    np.testing.assert_array_equal(shares_on((1, 1), jnp.zeros(8)), np.zeros(8))
