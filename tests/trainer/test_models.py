import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.models.text_tower import TextModel
from trainer.tokenizer import PAD_ID

TOKENS = np.asarray([[1, 5, 9, 7, 2] + [PAD_ID] * 3], np.int32)


def blocks(model, params, tokens):
    """The tokens as the last norm leaves them, before any is read."""
    _, seen = model.apply(
        {"params": params},
        tokens,
        capture_intermediates=lambda module, _: module.name == "blocks",
        mutable=["intermediates"],
    )
    return np.asarray(seen["intermediates"]["blocks"]["__call__"][0])


@pytest.fixture(params=["last", "mean"], scope="module")
def tower(request, tiny):
    model = TextModel(dataclasses.replace(tiny.text, pool=request.param), 16)
    return model, jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]


def test_a_text_does_not_depend_on_its_padding(tower):
    model, params = tower
    embed = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
    whole = embed(params, TOKENS)
    np.testing.assert_allclose(embed(params, TOKENS[:, :6]), whole, atol=1e-6)
    # Nor on what the table holds for it.
    table = params["table"]["embedding"]
    other = {**params, "table": {"embedding": table.at[PAD_ID].add(3.0)}}
    np.testing.assert_allclose(embed(other, TOKENS), whole, atol=1e-6)


def test_a_token_sees_what_follows_it_only_where_the_mean_is_read(tower):
    model, params = tower
    changed = TOKENS.copy()
    changed[0, 3] = 8
    before, after = blocks(model, params, TOKENS)[0], blocks(model, params, changed)[0]
    sees = model.config.pool == "mean"
    assert (np.abs(before[:3] - after[:3]).max() > 1e-4) == sees
    assert np.abs(before[3:5] - after[3:5]).max(axis=1).min() > 1e-4
    # The head reads the last token that is not padding, or the mean of such tokens.
    pooled = before[:5].mean(axis=0) if sees else before[4]
    head = {**params, "head": {"kernel": jnp.eye(16)}}
    np.testing.assert_allclose(model.apply({"params": head}, TOKENS)[0], pooled, atol=1e-6)
