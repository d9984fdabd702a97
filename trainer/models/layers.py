"""How the blocks of a tower are laid out and run: one by one or scanned, and what their backward pass recomputes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

STACKED: Final = "layers"  # the name of the blocks whose parameters are stacked along a first axis
_GATHERED = "gathered"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """How the blocks of a tower run. Only `scan` changes the parameters' layout; none changes what is computed."""

    scan: bool = False  # one block in the program, which runs `depth` times
    remat: Literal["none", "dots", "full"] = "none"
    # With `scan`: makes the parameters of one block whole on each device, when it runs (FSDP).
    gather: Callable[[Any], Any] | None = None

    def applied_to(self, block: type[nn.Module]) -> type[nn.Module]:
        """Returns the block with its parameters gathered and its activations recomputed, as the fields say."""
        gathers = self.scan and self.gather is not None
        if gathers:
            block = nn.map_variables(block, "params", trans_in_fn=self._gathered)
        policies = jax.checkpoint_policies
        if self.remat == "none" and not gathers:
            return block
        policy = {
            # Else the scan would keep a whole copy of the parameters of all blocks for the backward pass.
            "none": policies.save_anything_except_these_names(_GATHERED),
            "dots": policies.dots_with_no_batch_dims_saveable,
            "full": policies.nothing_saveable,
        }[self.remat]
        rematerialised: type[nn.Module] = nn.remat(block, policy=policy, prevent_cse=not self.scan)
        return rematerialised

    def _gathered(self, variables: Any) -> Any:
        assert self.gather is not None
        return jax.tree.map(lambda value: checkpoint_name(value, _GATHERED), self.gather(variables))


def stacked(blocks: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a `Transformer` with those of `block_<i>` stacked along a first axis, in `layers`."""
    depth = sum(name.startswith("block_") for name in blocks)
    layers = jax.tree.map(lambda *values: jnp.stack(values), *(blocks[f"block_{index}"] for index in range(depth)))
    return {STACKED: layers, "norm": blocks["norm"]}


def unstacked(blocks: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a `Transformer` with those of `layers` under the names `block_<i>`."""
    layers = blocks[STACKED]
    depth = len(jax.tree.leaves(layers)[0])
    of_each = {f"block_{index}": jax.tree.map(lambda value, i=index: value[i], layers) for index in range(depth)}
    return {**of_each, "norm": blocks["norm"]}
