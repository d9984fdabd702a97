import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from trainer.losses.collectives import gathered, summed_and_split
from trainer.mesh import make_mesh

ROWS, WHOLE = PartitionSpec(("data", "model")), PartitionSpec()


def on_devices(mesh, function, out):
    sharded = functools.partial(jax.shard_map, mesh=make_mesh(*mesh), check_vma=False)
    return jax.jit(sharded(function, in_specs=ROWS, out_specs=out))


def test_each_device_gets_the_rows_of_all_in_the_order_of_the_batch():
    rows = jnp.arange(32).reshape(16, 2)
    np.testing.assert_array_equal(on_devices((2, 4), gathered, WHOLE)(rows), rows)
    # Each device gives back all rows that it got.
    np.testing.assert_array_equal(on_devices((2, 4), gathered, ROWS)(rows), jnp.tile(rows, (8, 1)))


def test_each_device_gets_its_own_rows_of_the_sum():
    # Device d gives the rows 10 d to 10 d + 7; the sum of all is 10 x 28 more than eight times 0 to 7.
    rows = (10 * jnp.arange(8)[:, None] + jnp.arange(8)[None]).reshape(64, 1)
    summed = on_devices((2, 4), summed_and_split, ROWS)(rows)
    np.testing.assert_array_equal(summed[:, 0], 280 + 8 * np.arange(8))


def test_one_device_sends_nothing():
    for function in (gathered, summed_and_split):
        program = str(jax.make_jaxpr(on_devices((1, 1), function, ROWS))(jnp.ones((3, 2))))
        assert "all_gather" not in program and "reduce_scatter" not in program
        np.testing.assert_array_equal(on_devices((1, 1), function, ROWS)(jnp.ones((3, 2))), jnp.ones((3, 2)))
