"""Parameters are split over the devices, and gathered only when they are used: read from compiled programs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from trainer.configs.base import override
from trainer.mesh import batch_sharding, make_mesh
from trainer.optimizer import make_optimizer
from trainer.state import abstract_state, make_models
from trainer.train_step import make_train_step


def compiled_step(experiment, mesh, num_classes=64):
    devices, optimizer = make_mesh(*mesh), make_optimizer(experiment.optimizer, experiment.steps)
    state = abstract_state(experiment, make_models(experiment), optimizer, devices, num_classes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(experiment, make_models(experiment, devices), optimizer, devices, shardings, num_classes)
    size, rows = experiment.image.image_size_px, experiment.data.batch_size
    shapes = {"images": ((rows, size, size, 3), jnp.float32), "class_ids": ((rows,), jnp.int32)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(devices))
        for name, (shape, dtype) in shapes.items()
    }
    return step.lower(state, batch).compile()


def loops_of_all_gathers(program):
    """How many arrays of two axes or more each loop of a compiled program gathers; None stands for outside of loops."""
    text = program.as_text()
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    found, computation = {}, None
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{", line)
        if header:
            computation = header[1] if header[1] in bodies else None
        elif re.search(r"= \w+\[\d+,[\d,]+\]\S* all-gather\(", line):
            found[computation] = found.get(computation, 0) + 1
    return found


@pytest.fixture(scope="module")
def scanned(tiny):
    experiment = override(tiny, ["loss.contrastive_weight=0", "scan_layers=true", "optimizer.kind=adamw"])
    tower = dataclasses.replace(tiny.image, width=128, depth=4, pool="mean", stem_fold_px=0, scale_init_by_data=False)
    return dataclasses.replace(experiment, image=tower)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_each_kernel_of_a_block_is_gathered_within_the_loops_forward_and_backward(scanned, remat):
    gathers = loops_of_all_gathers(compiled_step(override(scanned, [f"remat={remat}"]), (2, 4)))
    gathers.pop(None)
    # query, key, value, out, up and down; nothing that the forward loop gathered is kept for the backward loop.
    assert sorted(gathers.values()) == [6, 6]


def test_eight_devices_each_hold_an_eighth_of_what_one_holds(scanned):
    one, eight = (compiled_step(scanned, mesh).memory_analysis().argument_size_in_bytes for mesh in ((1, 1), (1, 8)))
    # Parameters, moments and the batch. Norms and biases are held by each.
    assert one / 8 < eight <= 1.1 * one / 8
