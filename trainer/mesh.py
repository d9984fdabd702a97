"""The device mesh, data x model, its axis names, and the sharding of each array."""

from __future__ import annotations

import functools
import glob
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pipeline.schema import UserError
from trainer.configs.base import Experiment
from trainer.models.layers import STACKED

DATA_AXIS: Final = "data"  # the batch is split over it
MODEL_AXIS: Final = "model"  # the towers' parameters are split over it, and the batch too

AnyMesh = Mesh | AbstractMesh

_SIMULATED_FLAG = "--xla_force_host_platform_device_count"
_REPEATABLE_FLAG = "--xla_gpu_deterministic_ops"  # without it, sums on a GPU are rounded in varying order
_ACCELERATOR_PACKAGES = ("jax_plugins", "libtpu")  # where JAX finds GPUs and TPUs
_ACCELERATOR_FILES = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd", "/dev/dxg")


def parse_mesh(text: str) -> tuple[int, int]:
    """Returns the sizes (data, model) that `text`, of the form `AxB`, gives.

    Raises:
        UserError: `text` is not two positive integers with an x between them.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--mesh {text} is not of the form AxB with A, B >= 1 (data x model), e.g. --mesh 4x8")
    return int(match[1]), int(match[2])


def check_mesh(experiment: Experiment, mesh: str) -> tuple[int, int]:
    """Returns the sizes (data, model) of `mesh`, over which batch, towers and samples of the experiment divide.

    Raises:
        UserError: it is not of the form `AxB`, or they do not divide over it.
    """
    data, model = parse_mesh(mesh)
    check_batch(experiment.data.batch_size, data, model, experiment.micro_batches)
    widths = {"image.width": experiment.image.width}
    if experiment.contrasts:
        widths["text.width"] = experiment.text.width
    check_widths(widths, data, model)
    if experiment.samples:
        check_blocks(experiment.loss.sample_blocks, data * model)
    return data, model


def prepare_devices(count: int, *, deterministic: bool = True) -> None:
    """Asks XLA for `count` simulated CPU devices, or, if there is an accelerator, for operations that repeat exactly.

    It sets an environment variable that JAX reads when its first device is used, so it must run before that. A flag
    that is already set is kept.

    Args:
        count: devices of this process.
        deterministic: whether an accelerator's operations shall repeat exactly.
    """
    has_accelerator = _has_accelerator()
    if not has_accelerator and not os.environ.get("JAX_PLATFORMS"):
        # JAX's plugin for CUDA ends with a segmentation fault on a machine that has no driver.
        jax.config.update("jax_platforms", "cpu")
    flag, value = (_REPEATABLE_FLAG, str(deterministic).lower()) if has_accelerator else (_SIMULATED_FLAG, str(count))
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def _has_accelerator() -> bool:
    # An accelerator counts only if JAX can use it: the lock file installs JAX for the CPU.
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    usable = any(importlib.util.find_spec(name) for name in _ACCELERATOR_PACKAGES)
    return usable and any(glob.glob(pattern) for pattern in _ACCELERATOR_FILES)


def make_mesh(data: int, model: int) -> Mesh:
    """Returns a mesh over the first data * model devices.

    Raises:
        UserError: there are too few devices, or several processes and devices left over: each process needs a part of
            the batch.
    """
    devices = jax.devices()
    if jax.process_count() > 1 and len(devices) != data * model:
        raise UserError(
            f"--mesh {data}x{model} has {data * model} devices, but the {jax.process_count()} processes together have "
            f"{len(devices)}; use all of them, e.g. --mesh {len(devices)}x1"
        )
    if len(devices) < data * model:
        platform = devices[0].platform  # pragma: no mutate: all devices are of one platform
        raise UserError(
            f"--mesh {data}x{model} needs {data * model} devices, but there are {len(devices)} "
            f"({platform}); use a smaller mesh, e.g. --mesh {len(devices)}x1"
        )
    if len(devices) > data * model:  # pragma: no mutate: on CPU, both ways order the devices alike
        chosen = np.asarray(devices[: data * model]).reshape(data, model)
        return Mesh(chosen, (DATA_AXIS, MODEL_AXIS))  # its axes are of `AxisType.Auto`
    # Of all devices, JAX chooses the order that suits their network.
    return jax.make_mesh((data, model), (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto,) * 2)


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """Returns a mesh of no devices in particular, of any size, for shapes and shardings alone."""
    return AbstractMesh((data, model), (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto,) * 2)


def described(mesh: Mesh) -> str:
    """Returns a line that says which devices the mesh has."""
    data, model = mesh.devices.shape
    place = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    first = mesh.devices.flat[0]
    if first.platform == "cpu":
        return f"no accelerator: mesh {data}x{model} on {data * model} simulated CPU device(s){place}"
    return f"mesh {data}x{model} on {data * model} {first.device_kind} device(s){place}"


def check_batch(batch_size: int, data: int, model: int, micro_batches: int = 1) -> None:
    """Checks that each micro-batch divides over all devices.

    Raises:
        UserError: it does not; the message gives a batch size near it that does.
    """
    least = data * model * micro_batches
    if batch_size % least:
        nearest = max(1, round(batch_size / least)) * least
        parts = f" and {micro_batches} micro_batches" if micro_batches > 1 else ""
        raise UserError(
            f"data.batch_size {batch_size} does not divide over the {data * model} devices of --mesh {data}x{model}"
            f"{parts}; set a multiple, e.g. --set data.batch_size={nearest}"
        )


def check_widths(widths: Mapping[str, int], data: int, model: int) -> None:
    """Checks that the devices along `model` can split the parameters of the towers.

    Args:
        widths: of the towers, by the name of their field.
        data: devices along `data`.
        model: devices along `model`.

    Raises:
        UserError: they do not divide a width, so each of them would hold all parameters of that tower.
    """
    for name, width in widths.items():
        if width % model:
            raise UserError(
                f"{name} {width} does not divide over the {model} devices that split parameters in --mesh "
                f"{data}x{model}; use a mesh whose second number divides it, e.g. --mesh {data * model}x1"
            )


def check_blocks(num_blocks: int, num_devices: int) -> None:
    """Checks that each device can hold as many blocks of classes as any other.

    Raises:
        UserError: it cannot.
    """
    if num_blocks % num_devices:
        nearest = max(1, round(num_blocks / num_devices)) * num_devices
        raise UserError(
            f"loss.sample_blocks {num_blocks} does not divide over the {num_devices} devices of the mesh; set a "
            f"multiple, e.g. --set loss.sample_blocks={nearest}"
        )


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows are split over all devices."""
    return NamedSharding(mesh, P((DATA_AXIS, MODEL_AXIS)))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, P())


# How arrays of the training state are split, by the last part of their names, which a parameter and its moments share.
# Of the axes, counted from the last, the first whose length the devices along the mesh's axes divide is split among
# them. Axes of stacked layers never are: a step uses one layer at a time.
_SPLIT: Final[dict[str, tuple[tuple[int, ...], tuple[str, ...]]]] = {
    "class_vectors": ((-2,), (DATA_AXIS, MODEL_AXIS)),
    "kernel": ((-2, -1), (MODEL_AXIS,)),
    "embedding": ((-2, -1), (MODEL_AXIS,)),
    "position": ((-1,), (MODEL_AXIS,)),
}
# These are small, so each device holds a copy.
_WHOLE: Final = ("bias", "scale", "class_token", "log_scale", "log_class_scale", "count")


def state_shardings(mesh: AnyMesh, shapes: Any) -> Any:
    """Returns the sharding of each array of the training state, optimiser moments included.

    Args:
        mesh: has the axes `data` and `model`.
        shapes: a tree of arrays or of `jax.ShapeDtypeStruct`s, whose names are in the tables above.

    Raises:
        ValueError: an array's name is in neither table.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _sharding(mesh, path, leaf.shape), shapes)


def _sharding(mesh: AnyMesh, path: Any, shape: tuple[int, ...]) -> NamedSharding:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name in _SPLIT:
        axes, mesh_axes = _SPLIT[name]
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes)
        for axis in axes:
            if shape[axis] % parts == 0:
                spec: list[tuple[str, ...] | None] = [None] * len(shape)
                spec[axis] = mesh_axes
                return NamedSharding(mesh, P(*spec))
    elif name not in _WHOLE:
        raise ValueError(f"{jax.tree_util.keystr(path)} has no sharding; add '{name}' to _SPLIT or _WHOLE")
    return replicated(mesh)


def is_class_vectors(path: Any) -> bool:
    """Returns whether a tree path leads to the class vectors or to their moments."""
    return "class_vectors" in jax.tree_util.keystr(path)


def gathered(mesh: AnyMesh, params: Any) -> Any:
    """Returns parameters made whole on each device, as a step uses them; their gradients are split again (FSDP).

    Class vectors stay split, and so do stacked layers, which are gathered one at a time, when they run. Without this,
    XLA would split activations instead of the batch.
    """

    def gather(path: Any, value: jax.Array) -> jax.Array:
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        if is_class_vectors(path) or STACKED in names:
            return value
        return _gather(replicated(mesh), _sharding(mesh, path, value.shape), value)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: NamedSharding, split: NamedSharding, value: jax.Array) -> jax.Array:
    gathered_value: jax.Array = jax.lax.with_sharding_constraint(value, whole)
    return gathered_value


def _gather_forward(whole: NamedSharding, split: NamedSharding, value: jax.Array) -> tuple[jax.Array, None]:
    return _gather(whole, split, value), None


def _gather_backward(whole: NamedSharding, split: NamedSharding, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)
