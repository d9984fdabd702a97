"""The text tower: a transformer over tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from trainer.configs.base import TextTower
from trainer.models.layers import Layers
from trainer.models.vit import Transformer
from trainer.tokenizer import PAD_ID


class TextModel(nn.Module):
    """Tokens int32 [B, L] to embeddings float32 [B, D], not normalised."""

    config: TextTower
    embedding_dim: int
    dtype: jnp.dtype = jnp.float32
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        valid = tokens != PAD_ID  # padding is on the right
        lengths = valid.sum(axis=1)
        table = nn.Embed(
            config.vocabulary_size, config.width, embedding_init=nn.initializers.normal(0.02), name="table"
        )
        position = self.param("position", nn.initializers.normal(0.01), (1, config.context_length, config.width))
        hidden = (table(tokens) + position[:, : tokens.shape[1]]).astype(self.dtype)
        causal = config.pool == "last"
        hidden = Transformer(config, causal, self.dtype, self.layers, name="blocks")(hidden, lengths)
        if config.pool == "last":
            last = jnp.maximum(lengths - 1, 0)
            pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        else:
            weights = valid.astype(self.dtype)[..., None]
            pooled = (hidden * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
        return nn.Dense(self.embedding_dim, dtype=self.dtype, use_bias=False, name="head")(pooled).astype(jnp.float32)
