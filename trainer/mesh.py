"""The device mesh, data x model, its axis names, and the sharding of each array."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pipeline.schema import UserError

DATA_AXIS: Final = "data"  # the batch is split over it
MODEL_AXIS: Final = "model"  # the towers' parameters are split over it, and the batch too

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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows are split over all devices."""
    return NamedSharding(mesh, P((DATA_AXIS, MODEL_AXIS)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Returns a sharding for each array of the training state, optimiser moments included.

    Class vectors are split by rows over all devices. Other arrays of two axes or more are split along `model` (FSDP),
    at the longest axis that the size of `model` divides, the first of equals. All else is replicated.

    Args:
        mesh: has the axes `data` and `model`.
        shapes: a tree of arrays or of `jax.ShapeDtypeStruct`s.
    """
    size = mesh.shape[MODEL_AXIS]

    def of(path: Any, leaf: Any) -> NamedSharding:
        shape = leaf.shape
        if is_class_vectors(path):
            return NamedSharding(mesh, P((DATA_AXIS, MODEL_AXIS)))
        dividing = [axis for axis, length in enumerate(shape) if length % size == 0]
        if len(shape) < 2 or not dividing:
            return replicated(mesh)
        axis = max(dividing, key=lambda axis: shape[axis])
        return NamedSharding(mesh, P(*(MODEL_AXIS if index == axis else None for index in range(len(shape)))))

    return jax.tree_util.tree_map_with_path(of, shapes)


def is_class_vectors(path: Any) -> bool:
    """Returns whether a tree path leads to the class vectors or to their moments."""
    return "class_vectors" in jax.tree_util.keystr(path)
