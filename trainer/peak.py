"""The largest rate at which devices multiply matrices, which the rate of a run is compared with."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# Of one device, bfloat16 without sparsity, in operations a second: the makers' data sheets, by JAX's device kind.
_BFLOAT16 = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
_SIDE = 2048  # of the square matrices whose product is measured (ours)
_ROUNDS = 3


def peak_flops(mesh: Mesh, dtype: str) -> float:
    """Returns the operations a second of all devices together, for matrix products in `dtype`.

    For bfloat16 on a known accelerator it is what the maker states. Else it is measured: the best of three square
    products on one device. Simulated devices of one process share its cores, so they count as one.

    Args:
        mesh: the devices.
        dtype: "float32" or "bfloat16".
    """
    first = mesh.local_devices[0]
    stated = _BFLOAT16.get(first.device_kind) if dtype == "bfloat16" else None
    count = jax.process_count() if first.platform == "cpu" else mesh.size
    return count * (stated or _measured_flops(first, dtype))


def _measured_flops(device: jax.Device, dtype: str) -> float:
    factor = jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(factor, factor))  # compiles
    least = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(product(factor, factor))
        least = min(least, time.perf_counter() - start)
    return 2.0 * _SIDE**3 / least
