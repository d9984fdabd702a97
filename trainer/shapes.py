"""The shapes of two sets of parameters, and how they differ, in words."""

from __future__ import annotations

from typing import Any

import jax

_SHOWN = 5  # differing parameters that an error names

Shapes = dict[str, tuple[int, ...]]


def shapes_of(params: Any) -> Shapes:
    """Returns the shape of each array of a nested dict, by its path, for example "image/head/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def shapes_that_differ(there: Shapes, here: Shapes) -> str:
    """Returns the first parameters that differ, with both shapes, and how many more do; "" if none does."""
    differing = [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return "; ".join(differing[:_SHOWN]) + more
