"""How the blocks of a tower are laid out and run: one by one or scanned, and what their backward pass recomputes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from trainer.models.attention import ELEMENTWISE, PRODUCT, Implementation

STACKED: Final = "layers"  # the name of the blocks whose parameters are stacked along a first axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """How the blocks of a tower run. Only `scan` changes the parameters' layout; none changes what is computed."""

    scan: bool = False  # the parameters of all blocks are stacked, and the program runs `unroll` blocks in a loop
    unroll: int = 1
    remat: Literal["none", "light", "dots", "full"] = "none"
    # With `scan`: makes the parameters of one block whole on each device, when it runs (FSDP).
    gather: Callable[[Any], Any] | None = None
    attention: Implementation = "xla"

    def applied_to(self, block: type[nn.Module], dtype: jnp.dtype) -> type[nn.Module]:
        """Returns the block, of products in `dtype`, with parameters gathered and activations recomputed as stated."""
        gathers = self.scan and self.gather is not None
        if gathers:
            block = nn.map_variables(block, "params", trans_in_fn=functools.partial(self._gathered, dtype))
        if self.remat == "none" and not gathers:
            return block
        policy = {
            "none": _all_but_gathered,
            "light": _named(PRODUCT, ELEMENTWISE),
            "dots": _named(PRODUCT),
            "full": jax.checkpoint_policies.nothing_saveable,
        }[self.remat]
        # Within a loop XLA cannot join what is computed twice.
        in_loop = self.scan and self.unroll == 1
        rematerialised: type[nn.Module] = nn.remat(block, policy=policy, prevent_cse=not in_loop)
        return rematerialised

    def _gathered(self, dtype: jnp.dtype, variables: Any) -> Any:
        def cast(path: Any, value: jax.Array) -> jax.Array:
            # The products would cast them anyway; done before, half as much is sent.
            return value.astype(dtype) if jax.tree_util.keystr(path[-1:], simple=True) == "kernel" else value

        assert self.gather is not None
        return self.gather(jax.tree_util.tree_map_with_path(cast, variables))


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Returns whether a result is kept. `gather` is a call with a sharding constraint in it, whose result is not.

    If it were, the scan would keep a whole copy of the parameters of all blocks for the backward pass.
    """
    return "sharding_constraint" not in str(params.get("call_jaxpr", primitive))


def _named(*names: str) -> Callable[..., bool]:
    """Returns the policy that keeps what has one of these names, and what cuDNN's attention computes."""
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def policy(primitive: Any, *arguments: Any, **params: Any) -> bool:
        return "dot_product_attention_fwd" in str(primitive) or bool(named(primitive, *arguments, **params))

    return policy


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
