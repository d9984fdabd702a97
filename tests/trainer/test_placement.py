import dataclasses

import jax
import numpy as np
import pytest

from trainer.configs.base import override
from trainer.mesh import make_mesh
from trainer.optimizer import make_optimizer
from trainer.placement import device_bytes, placement, readable, total_bytes
from trainer.state import abstract_state, init_state, make_models


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


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (99_960, "100 kB"), (123_456_789, "123 MB")]
    + [(999_600_000, "1 GB"), (5.2e12, "5.2 TB"), (4.3e16, "43000 TB")],
)
def test_bytes_are_written_with_a_unit(count, text):
    assert readable(count) == text
