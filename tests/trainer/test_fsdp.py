"""Parameters are split over the devices, and gathered only when they are used: read from compiled programs."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from trainer.configs.base import override
from trainer.memory_plan import planned_collectives, planned_state
from trainer.mesh import abstract_mesh, batch_sharding, make_mesh
from trainer.optimizer import make_optimizer
from trainer.placement import device_bytes
from trainer.state import abstract_state, make_models
from trainer.train_step import make_train_step


@functools.cache
def compiled_step(experiment, mesh, num_classes=64):
    devices, optimizer = make_mesh(*mesh), make_optimizer(experiment.optimizer, experiment.steps)
    state = abstract_state(experiment, make_models(experiment), optimizer, devices, num_classes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(experiment, make_models(experiment, devices), optimizer, devices, shardings, num_classes)
    shapes = batch_shapes(experiment)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(devices))
        for name, (shape, dtype) in shapes.items()
    }
    return step.lower(state, batch).compile()


def batch_shapes(experiment):
    size, rows = experiment.image.image_size_px, experiment.data.batch_size
    shapes = {"images": ((rows, size, size, 3), jnp.float32), "class_ids": ((rows,), jnp.int32)}
    if experiment.contrasts:
        shapes |= {"tokens": ((rows, experiment.text.context_length), jnp.int32), "text_groups": ((rows,), jnp.int32)}
        shapes |= {"image_groups": ((rows, 2), jnp.int32)}
    return shapes


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


@pytest.mark.parametrize("remat", ["none", "light", "dots", "full"])
def test_each_kernel_of_a_block_is_gathered_within_the_loops_forward_and_backward(scanned, remat):
    gathers = loops_of_all_gathers(compiled_step(override(scanned, [f"remat={remat}"]), (2, 4)))
    gathers.pop(None)
    # query, key, value, out, up and down; nothing that the forward loop gathered is kept for the backward loop.
    assert sorted(gathers.values()) == [6, 6]


def test_eight_devices_each_hold_an_eighth_of_what_one_holds(scanned):
    one, eight = (compiled_step(scanned, mesh).memory_analysis().argument_size_in_bytes for mesh in ((1, 1), (1, 8)))
    # Parameters, moments and the batch. Norms and biases are held by each.
    assert one / 8 < eight <= 1.1 * one / 8


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("mesh", [(2, 4), (1, 8)])
@pytest.mark.parametrize("name", ["scanned", "tiny"])
def test_the_plan_of_the_state_is_what_the_compiled_program_takes_to_the_byte(request, name, mesh, remat):
    experiment = override(request.getfixturevalue(name), [f"remat={remat}"])
    batch = sum(4 * math.prod(shape) for shape, _ in batch_shapes(experiment).values()) // 8
    planned = device_bytes(planned_state(experiment, abstract_mesh(*mesh), 64))
    assert compiled_step(experiment, mesh).memory_analysis().argument_size_in_bytes == planned + batch


def collectives_of(program):
    """The collectives of a compiled program, as (kind, bytes of the result in a step, name of the operation)."""
    text = program.as_text()
    trips = {
        loop["body"]: int(loop["count"])
        for loop in re.finditer(r'body=%?(?P<body>[\w.-]+),.*"known_trip_count":\{"n":"(?P<count>\d+)"', text)
    }
    found, times = [], 1
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{", line)
        if header:
            times = trips.get(header[1], 1)
        match = re.search(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(", line)
        if match:
            sizes = [
                (1 if kind == "pred" else 4) * math.prod(int(side) for side in sides.split(",") if side)
                for kind, sides in re.findall(r"(f32|s32|pred)\[([\d,]*)\]", match[1])
            ]
            name = re.search(r'op_name="([^"]*)"', line)
            found.append((match[2], times * sum(sizes), name[1] if name else ""))
    return found


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4), (1, 8)])
def test_the_plan_of_the_collectives_is_what_the_compiled_program_has(tiny, mesh):
    experiment = override(tiny, ["scan_layers=true", "optimizer.kind=adamw", "image.depth=3", "text.depth=2"])
    experiment = override(experiment, ["remat=full", "image.scale_init_by_data=false"])
    planned = planned_collectives(experiment, planned_state(experiment, abstract_mesh(*mesh), 64), abstract_mesh(*mesh))
    found = collectives_of(compiled_step(experiment, mesh))

    def total(*kinds, of=""):
        return sum(count for kind, count, name in found if kind in kinds and re.search(of, name))

    def plan(part):
        return sum(count for name, count in planned.items() if part in name)

    assert total("all-gather", of="dynamic_index_in_dim|sharding_constraint") == plan("parameters, before use")
    # 4 bytes for the class of each of the 16 images and the group of each text go with the embeddings.
    assert total("all-gather", of="shard_map") == plan("all-gather over all: embeddings") + 2 * 4 * 16
    assert total("reduce-scatter") == plan("reduce-scatter over all: gradients of the embeddings")
    assert total("all-gather", "all-to-all", of="scatter-add") == plan("gradients by token")
    # On the CPU a gradient is summed whole before it is split over `model`. Less than 1 kB is of losses and norms.
    gradients = mesh[1] * plan("reduce-scatter over model: gradients") + plan("all-reduce: gradients")
    assert gradients <= total("all-reduce") < gradients + 1000
    assert total("collective-permute") == 0
