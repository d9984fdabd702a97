"""What each device holds of the training state, as a table."""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from trainer.state import State


def device_bytes(tree: Any) -> int:
    """Returns how many bytes of `tree`, of arrays or abstract ones with shardings, each device holds."""
    return sum(_device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def total_bytes(tree: Any) -> int:
    """Returns the bytes of `tree`, of arrays or abstract ones, counted once."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _device_bytes(leaf: Any) -> int:
    shape: tuple[int, ...] = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * int(leaf.dtype.itemsize)


def placement(state: State) -> str:
    """Returns a line that says how large the state is, of all devices and of each.

    If there are several devices, a table before it states of each parameter its shape, the mesh's axes that split its
    axes, and the bytes that each device holds. Those of blocks that are not scanned share a row.
    """
    params, moments = device_bytes(state.params), device_bytes(state.opt_state)
    summary = (
        f"state: {readable(total_bytes(state))}, of which each device holds {readable(params + moments)} "
        f"(parameters {readable(params)}, optimiser {readable(moments)})"
    )
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    if leaves[0][1].sharding.mesh.size == 1:
        return summary
    rows: dict[tuple[str, str, str], int] = {}
    for path, leaf in leaves:
        name = re.sub(r"block_\d+", "block_*", jax.tree_util.keystr(path, simple=True, separator="/"))
        row = name, "x".join(map(str, leaf.shape)) or "1", _split(leaf)
        rows[row] = rows.get(row, 0) + _device_bytes(leaf)
    cells = [("parameter", "shape", "split over", "bytes per device")]
    cells += [(*row, f"{count:,}") for row, count in rows.items()]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*lines, summary])


def _split(leaf: Any) -> str:
    """Returns the mesh axes that split each axis, for example "-, model"; "whole" if none does."""
    spec = leaf.sharding.spec
    if not any(spec):
        return "whole"
    return ", ".join(axes if isinstance(axes, str) else " x ".join(axes or "-") for axes in spec)


def readable(count: float) -> str:
    """Returns a number of bytes in units of 1000, as 3 digits or more: "1.23 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
