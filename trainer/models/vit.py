"""The image tower, a vision transformer, and the transformer that both towers use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from trainer.configs.base import Activation, ImageTower, TextTower
from trainer.models.attention import (
    ELEMENTWISE,
    PRODUCT,
    PROJECTION_INIT,
    Attention,
    Implementation,
    padded_tokens,
)
from trainer.models.layers import Layers

Tower = ImageTower | TextTower

_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda values: values * nn.sigmoid(1.702 * values),
}


class Block(nn.Module):
    """A pre-norm transformer block of the tower that `config` describes, over tokens [B * T, W]."""

    config: Tower
    num_tokens: int  # T
    causal: bool
    dtype: jnp.dtype
    attention: Implementation

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
        config = self.config
        normed = nn.LayerNorm(config.norm_epsilon, dtype=self.dtype, name="norm_attention")(tokens)
        attention = Attention(
            config.num_heads, self.num_tokens, self.causal, self.dtype, self.attention, name="attention"
        )
        tokens = checkpoint_name(tokens + attention(checkpoint_name(normed, ELEMENTWISE), lengths), PRODUCT)
        hidden = checkpoint_name(
            nn.LayerNorm(config.norm_epsilon, dtype=self.dtype, name="norm_mlp")(tokens), ELEMENTWISE
        )
        wide = config.mlp_ratio * config.width
        hidden = nn.Dense(wide, dtype=self.dtype, kernel_init=PROJECTION_INIT, name="up")(hidden)
        hidden = checkpoint_name(_ACTIVATIONS[config.activation](checkpoint_name(hidden, PRODUCT)), ELEMENTWISE)
        return tokens + nn.Dense(config.width, dtype=self.dtype, kernel_init=PROJECTION_INIT, name="down")(hidden)


class Transformer(nn.Module):
    """The blocks of a tower and a final norm over [B, T, W]; of a row, the first `lengths` tokens are seen, or all.

    The parameters of block i are `block_<i>`; with `layers.scan` those of all blocks are stacked along a first axis, in
    `layers`, and the program holds one block whatever the depth.

    Within, the tokens are the rows of a matrix, [B * T, W]. Given [B, T, W], XLA chose for GPUs a layout with the batch
    as the fastest axis, and transposed the tokens in each block: on an H200 that took a seventh of B/16's step.
    """

    config: Tower
    causal: bool
    dtype: jnp.dtype
    layers: Layers

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        config, num_tokens = self.config, tokens.shape[1]
        tokens, lengths = padded_tokens(tokens, lengths, self.layers.attention)
        shape = tokens.shape
        tokens = tokens.reshape(-1, config.width)
        block_type = self.layers.applied_to(Block, self.dtype)
        block = functools.partial(block_type, config, shape[1], self.causal, self.dtype, self.layers.attention)
        if self.layers.scan:

            def step(block: nn.Module, tokens: jax.Array, lengths: jax.Array | None) -> tuple[jax.Array, None]:
                return block(tokens, lengths), None

            over_layers = nn.scan(
                step,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=config.depth,
                unroll=min(self.layers.unroll, config.depth),
            )
            tokens, _ = over_layers(block(name="layers"), tokens, lengths)
        else:
            for index in range(config.depth):
                tokens = block(name=f"block_{index}")(tokens, lengths)
        normed: jax.Array = nn.LayerNorm(config.norm_epsilon, dtype=self.dtype, name="norm")(tokens)
        return normed.reshape(shape)[:, :num_tokens]


class ImageModel(nn.Module):
    """Images float32 [B, S, S, 3] to embeddings float32 [B, D], not normalised."""

    config: ImageTower
    embedding_dim: int
    dtype: jnp.dtype = jnp.float32
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        config = self.config
        tokens = images.astype(self.dtype)
        if config.stem_fold_px:
            tokens = fold(tokens, config.stem_fold_px)
            tokens = nn.gelu(nn.Dense(config.stem_channels, dtype=self.dtype, name="stem_mix")(tokens))
            tokens = fold(tokens, config.patch_px // config.stem_fold_px)
        else:
            tokens = fold(tokens, config.patch_px)
        tokens = nn.Dense(config.width, dtype=self.dtype, name="stem")(tokens)
        tokens = tokens.reshape(tokens.shape[0], -1, config.width)
        class_token = config.pool == "class_token"
        if class_token:
            start = self.param("class_token", nn.initializers.normal(0.02), (1, 1, config.width))
            start = jnp.broadcast_to(start.astype(self.dtype), (tokens.shape[0], 1, config.width))
            tokens = jnp.concatenate([start, tokens], axis=1)
        position = self.param("position", nn.initializers.normal(0.02), (1, tokens.shape[1], config.width))
        tokens = tokens + position.astype(self.dtype)
        if config.pre_norm:
            pre_norm = nn.LayerNorm(config.norm_epsilon, dtype=self.dtype, name="pre_norm")
            tokens = pre_norm(tokens.reshape(-1, config.width)).reshape(tokens.shape)  # rows, as in `Transformer`
        tokens = Transformer(config, False, self.dtype, self.layers, name="blocks")(tokens)
        if class_token:
            pooled = tokens[:, 0]
        elif config.pool == "mean":
            pooled = tokens.mean(axis=1)
        else:
            pooled = tokens.reshape(tokens.shape[0], -1)
        head = nn.Dense(self.embedding_dim, dtype=self.dtype, use_bias=config.scale_init_by_data, name="head")
        return head(pooled).astype(jnp.float32)


def fold(images: jax.Array, factor: int) -> jax.Array:
    """Returns [B, H / factor, W / factor, C * factor^2], the pixels of each square laid along the channels."""
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return images.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // factor, width // factor, -1)


def scale_by_data(model: ImageModel, params: dict[str, Any], images: jax.Array) -> dict[str, Any]:
    """Returns `params` with stem and head scaled so that their outputs over `images` have mean 0 and variance 1."""
    for name in ("stem", "head"):

        def is_layer(module: nn.Module, method: str, name: str = name) -> bool:
            return module.name == name

        _, captured = model.apply(
            {"params": params},
            images,
            capture_intermediates=is_layer,
            mutable=["intermediates"],
        )
        outputs = captured["intermediates"][name]["__call__"][0].astype(jnp.float32)
        outputs = outputs.reshape(-1, outputs.shape[-1])
        inverse = 1 / (outputs.std(axis=0) + 1e-3)
        layer = params[name]
        scaled = {
            "kernel": layer["kernel"] * inverse[None, :],
            "bias": (layer["bias"] - outputs.mean(axis=0)) * inverse,
        }
        params = {**params, name: scaled}
    return params
