"""Whether numbers are finite, array by array, so that the first one that is not can be named."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def finite_leaves(tree: Any) -> jax.Array:
    """Returns bool [leaves]: whether all numbers of each leaf are finite, in the order of the tree."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def first_not_finite(tree: Any, finite: np.ndarray | jax.Array) -> str | None:
    """Returns the path of the first leaf that is not finite, e.g. `params/image/head/kernel`; None if all are.

    Args:
        tree: any tree of the same structure as the one that `finite` is of.
        finite: bool [leaves], what `finite_leaves` returned.
    """
    for (path, _), is_finite in zip(jax.tree_util.tree_leaves_with_path(tree), np.asarray(finite), strict=True):
        if not is_finite:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None
