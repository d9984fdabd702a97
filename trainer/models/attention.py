"""Multi-head self-attention, by XLA or by cuDNN's flash attention."""

from __future__ import annotations

from typing import Final, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Implementation = Literal["xla", "cudnn"]
# Names of what a block computes, for the rematerialisation policies of `trainer.models.layers`.
PRODUCT: Final = "product"  # of matrices, with what is added to it
ELEMENTWISE: Final = "elementwise"  # a norm or an activation

PROJECTION_INIT: Final = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_CUDNN_TOKENS = 8  # a multiple of it is taken by every version of cuDNN and JAX; odd numbers are refused by some


class Attention(nn.Module):
    """Self-attention over texts or images of `num_tokens` each, one after the other in [B * T, W].

    Of each, the first `lengths` tokens, int32 [B], can be attended to, or all.
    """

    num_heads: int
    num_tokens: int  # T
    causal: bool
    dtype: jnp.dtype
    implementation: Implementation = "xla"

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
        length, width = self.num_tokens, tokens.shape[1]
        # Three matrices, not one, because Muon orthogonalises each matrix by itself.
        query, key, value = (
            checkpoint_name(
                nn.Dense(width, dtype=self.dtype, kernel_init=PROJECTION_INIT, name=name)(tokens), PRODUCT
            ).reshape(-1, length, self.num_heads, width // self.num_heads)
            for name in ("query", "key", "value")
        )
        if self.implementation == "cudnn":  # it takes lengths, and its backward pass keeps its own result
            mixed = jax.nn.dot_product_attention(
                query, key, value, key_value_seq_lengths=lengths, is_causal=self.causal, implementation="cudnn"
            )
        else:  # a mask, which more exporters can convert
            mask = None if lengths is None else (jnp.arange(length)[None] < lengths[:, None])[:, None, None]
            mixed = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=self.causal)
            mixed = checkpoint_name(mixed, PRODUCT)
        mixed = mixed.reshape(-1, width)
        out_init = nn.initializers.variance_scaling(0.5, "fan_in", "truncated_normal")
        return nn.Dense(width, dtype=self.dtype, kernel_init=out_init, name="out")(mixed)


def padded_tokens(
    tokens: jax.Array, lengths: jax.Array | None, implementation: Implementation
) -> tuple[jax.Array, jax.Array | None]:
    """Returns [B, T', W] and lengths, with tokens added at the end that no other attends to, where cuDNN needs them."""
    missing = -tokens.shape[1] % _CUDNN_TOKENS
    if implementation == "xla" or not missing:
        return tokens, lengths
    if lengths is None:
        lengths = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
    return jnp.pad(tokens, ((0, 0), (0, missing), (0, 0))), lengths


def fastest_attention(platform: str, *, num_heads: int, head_width: int, causal: bool, dtype: str) -> Implementation:
    """Returns the fastest exact implementation that takes these sizes, on devices of `platform`."""
    if platform != "gpu":
        return "xla"
    heads = jax.ShapeDtypeStruct((1, _CUDNN_TOKENS, num_heads, head_width), dtype)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)

    def mixed_sum(heads: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            heads, heads, heads, key_value_seq_lengths=lengths, is_causal=causal, implementation="cudnn"
        ).sum()

    try:
        jax.eval_shape(jax.grad(mixed_sum), heads, lengths)
    except (NotImplementedError, RuntimeError, ValueError):  # no cuDNN, or it has no kernel of these sizes
        return "xla"
    return "cudnn"
