import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainer.configs.base import override
from trainer.mesh import abstract_mesh, make_mesh, replicated, state_shardings
from trainer.optimizer import make_optimizer
from trainer.placement import device_bytes, placement, readable, total_bytes
from trainer.state import State, abstract_state, init_state, make_models


def abstract(experiment, mesh):
    devices, optimizer = make_mesh(*mesh), make_optimizer(experiment.optimizer, experiment.steps)
    return abstract_state(experiment, make_models(experiment), optimizer, devices, 5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("mesh", [(2, 4), (1, 1), (1, 3)])
def test_the_bytes_of_a_device_are_those_that_it_holds(tiny, mesh, scan):
    experiment = dataclasses.replace(tiny, scan_layers=scan)
    devices, optimizer = make_mesh(*mesh), make_optimizer(experiment.optimizer, experiment.steps)
    images = np.zeros((4, 8, 8, 3), np.float32)
    state = init_state(experiment, make_models(experiment), optimizer, devices, 5, images)
    for device in devices.devices.flat:
        shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
        held = sum(shard.data.nbytes for shard in shards if shard.device == device)
        assert device_bytes(abstract(experiment, mesh)) == held


def test_the_table_states_shape_split_and_bytes_of_each_parameter(tiny):
    experiment = override(tiny, ["optimizer.kind=adamw", "image.depth=2"])
    state = abstract(experiment, (2, 4))
    rows = [line.split("  ") for line in placement(state).splitlines()]
    rows = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert rows["parameter"] == ["shape", "split over", "bytes per device"]
    # 5 classes are padded to 8; each of the 8 devices holds one of 8 numbers: 32 bytes.
    assert rows["class_vectors"] == ["8x8", "data x model, -", "32"]
    # Two blocks, each with 4 of 16 rows of 32 numbers.
    assert rows["image/blocks/block_*/up/kernel"] == ["16x32", "model, -", f"{2 * 4 * 32 * 4:,}"]
    assert rows["image/blocks/block_*/up/bias"] == ["32", "whole", f"{2 * 32 * 4}"]
    assert rows["log_scale"] == ["1", "whole", "4"]
    assert len(rows) < 60


def test_one_device_is_told_in_one_line(tiny):
    state = abstract(tiny, (1, 1))
    whole = readable(total_bytes(state))
    params, moments = readable(total_bytes(state.params)), readable(total_bytes(state.opt_state))
    assert placement(state) == (
        f"state: {whole}, of which each device holds {whole} (parameters {params}, optimiser {moments})"
    )


def of_two_blocks(mesh):
    """A state of shapes alone: two blocks, a scale, and one moment."""
    shapes = {
        "class_vectors": (16, 4),
        "image": {f"block_{number}": {"kernel": (3, 8), "bias": (8,)} for number in (0, 11)},
        "log_scale": (),
        "stem": {"kernel": (5, 3)},
    }
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    state = State(params=params, opt_state={"mu": {"class_vectors": jax.ShapeDtypeStruct((16, 4), np.float64)}})
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(mesh, state),
    )


def test_the_table_is_aligned_and_ends_with_the_sum():
    # A device of eight has 2 of 16 class vectors; of the four along `model`, 2 of 8 columns of each kernel, of which
    # there are two. The parameters of a device are 32 + 48 + 64 + 4 + 60 bytes, the moments 64. In all, there are
    # 4 x (64 + 48 + 16 + 1 + 15) and 8 x 64 bytes.
    assert placement(of_two_blocks(abstract_mesh(2, 4))).splitlines() == [
        "parameter             shape  split over       bytes per device",
        "class_vectors         16x4   data x model, -  32",
        "image/block_*/bias    8      whole            64",
        "image/block_*/kernel  3x8    -, model         48",
        "log_scale             1      whole            4",
        "stem/kernel           5x3    whole            60",
        "state: 1.09 kB, of which each device holds 272 B (parameters 208 B, optimiser 64 B)",
    ]


def test_of_one_device_the_table_is_only_its_sum():
    expected = "state: 1.09 kB, of which each device holds 1.09 kB (parameters 576 B, optimiser 512 B)"
    assert placement(of_two_blocks(abstract_mesh(1, 1))) == expected


def test_bytes_in_a_table_have_commas():
    leaf = jax.ShapeDtypeStruct((1000, 3), np.float32, sharding=replicated(abstract_mesh(1, 2)))
    state = State(params={"bias": leaf}, opt_state=())
    assert placement(state).splitlines()[1] == "bias       1000x3  whole       12,000"
    assert device_bytes(leaf) == total_bytes([leaf]) == 12_000
    # A part of an axis may be named alone.
    named = NamedSharding(abstract_mesh(1, 2), PartitionSpec(None, "model"))
    leaf = jax.ShapeDtypeStruct((6, 4), np.float32, sharding=named)
    assert "bias       6x4    -, model    48" in placement(State(params={"bias": leaf}, opt_state=()))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.4, "999 B"), (999.5, "1 kB"), (1000, "1 kB"), (1234, "1.23 kB")]
    + [(99_949, "99.9 kB"), (99_950, "100 kB"), (99_960, "100 kB"), (123_456_789, "123 MB"), (999_600_000, "1 GB")]
    + [(999.6e9, "1 TB"), (5.2e12, "5.2 TB"), (999.5e12, "1000 TB"), (4.3e16, "43000 TB")],
)
def test_bytes_are_written_with_a_unit(count, text):
    assert readable(count) == text
