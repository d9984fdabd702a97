import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer.configs.base import ImageTower, TextTower
from trainer.models.attention import fastest_attention
from trainer.models.layers import Layers, stacked, unstacked
from trainer.models.text_tower import TextModel
from trainer.models.vit import ImageModel
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


IMAGE = ImageTower(image_size_px=8, patch_px=4, width=16, depth=3, num_heads=2, mlp_ratio=2, pre_norm=True)
TEXT = TextTower(vocabulary_size=300, context_length=8, width=16, depth=3, num_heads=2, mlp_ratio=2)
PIXELS = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
LAYOUTS = [
    *(Layers(scan=scan, remat=remat) for scan in (False, True) for remat in ("none", "light", "dots", "full")),
    Layers(scan=True, unroll=2, remat="dots"),  # which does not divide the three blocks
    Layers(scan=True, unroll=8, remat="full"),
]


# Both towers run their blocks by the same code; that of texts gives it their lengths.
@pytest.mark.parametrize(
    ("tower", "config", "inputs", "layouts"),
    [(ImageModel, IMAGE, PIXELS, LAYOUTS), (TextModel, TEXT, TOKENS, [LAYOUTS[0], LAYOUTS[4], LAYOUTS[-1]])],
)
def test_blocks_that_are_scanned_or_recomputed_give_the_same_values_and_gradients(tower, config, inputs, layouts):
    params = jax.jit(tower(config, 8).init)(jax.random.key(0), inputs)["params"]
    results = []
    for layers in layouts:

        def loss(params, layers=layers):
            blocks = stacked(params["blocks"]) if layers.scan else params["blocks"]
            outputs = tower(config, 8, layers=layers).apply({"params": {**params, "blocks": blocks}}, inputs)
            return (outputs**2).sum(), outputs

        (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        results.append((outputs, gradients))
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, results[0])


@pytest.mark.parametrize(
    ("tower", "config", "inputs"),
    [
        (ImageModel, IMAGE, PIXELS),
        (ImageModel, dataclasses.replace(IMAGE, pool="mean"), PIXELS),
        (TextModel, TEXT, TOKENS[:, :7]),
    ],
)
def test_tokens_that_are_padded_for_cudnn_change_nothing(tower, config, inputs, monkeypatch):
    attend = jax.nn.dot_product_attention
    lengths = []

    def by_xla(query, key, value, *, implementation="xla", **options):
        if implementation == "cudnn":
            lengths.append(query.shape[1])
        return attend(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    params = jax.jit(tower(config, 8).init)(jax.random.key(0), inputs)["params"]

    def loss(params, attention):
        outputs = tower(config, 8, layers=Layers(attention=attention)).apply({"params": params}, inputs)
        return (outputs**2).sum(), outputs

    expected, padded = (jax.value_and_grad(loss, has_aux=True)(params, attention) for attention in ("xla", "cudnn"))
    assert set(lengths) == {8}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), padded, expected)


def test_blocks_multiply_the_tokens_as_rows_of_a_matrix(tiny):
    # Else XLA may lay them out by token on a GPU, and transpose them in each block.
    model = ImageModel(tiny.image, 16)
    images = jnp.zeros((2, tiny.image.image_size_px, tiny.image.image_size_px, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    program = str(jax.make_jaxpr(lambda params: model.apply({"params": params}, images))(params))
    products = re.findall(r"f32\[([\d,]+)\] = dot_general", program)
    rows = 2 * ((tiny.image.image_size_px // tiny.image.patch_px) ** 2 + (tiny.image.pool == "class_token"))
    wide = tiny.image.mlp_ratio * tiny.image.width
    assert products.count(f"{rows},{tiny.image.width}") == 5 * tiny.image.depth  # query, key, value, out, down
    assert products.count(f"{rows},{wide}") == tiny.image.depth  # up


def test_attention_is_that_of_xla_where_there_is_no_cudnn():
    sizes = {"num_heads": 2, "head_width": 8, "causal": False, "dtype": "bfloat16"}
    assert fastest_attention("cpu", **sizes) == "xla"
    assert fastest_attention("gpu", **sizes) == "xla"  # the error that JAX raises here


def test_attention_is_that_of_cudnn_where_it_takes_the_sizes(monkeypatch):
    def cudnn(query, key, value, *, implementation, key_value_seq_lengths, is_causal):
        if query.dtype != jnp.bfloat16:
            raise NotImplementedError("Q must be fp16/bf16")
        assert implementation == "cudnn"
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    sizes = {"num_heads": 2, "head_width": 8, "causal": True}
    assert fastest_attention("gpu", dtype="bfloat16", **sizes) == "cudnn"
    assert fastest_attention("gpu", dtype="float32", **sizes) == "xla"
    assert fastest_attention("tpu", dtype="bfloat16", **sizes) == "xla"


def test_each_scanned_block_starts_from_values_of_its_own():
    params = ImageModel(IMAGE, 8, layers=Layers(scan=True)).init(jax.random.key(0), PIXELS)["params"]
    kernel = params["blocks"]["layers"]["up"]["kernel"]
    assert kernel.shape == (3, 16, 32)
    # Of 16 inputs, so of variance 1 / 16 each, not 1 / 48.
    np.testing.assert_allclose(kernel.std(axis=(1, 2)), 0.25, rtol=0.1)
    assert len({float(block[0, 0]) for block in kernel}) == 3


def test_stacked_blocks_are_unstacked_as_they_were():
    params = jax.jit(ImageModel(IMAGE, 8).init)(jax.random.key(0), PIXELS)["params"]["blocks"]
    jax.tree.map(np.testing.assert_array_equal, unstacked(stacked(params)), params)


def saved_numbers(layers):
    """How many numbers the backward pass of a block keeps for each token, beyond the parameters."""

    def kept(depth, batch):
        model = ImageModel(dataclasses.replace(IMAGE, depth=depth), 8, layers=layers)
        params = jax.eval_shape(model.init, jax.random.key(0), PIXELS)["params"]
        images = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
        residuals = jax.eval_shape(lambda p, i: jax.vjp(lambda p: model.apply({"params": p}, i), p)[1], params, images)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    return (kept(12, 6) - kept(12, 2) - kept(2, 6) + kept(2, 2)) / (10 * 4 * 5)


@pytest.mark.parametrize("scan", [True, False])
def test_the_more_is_recomputed_the_less_is_kept(scan):
    none, light, dots, full = (
        saved_numbers(Layers(scan=scan, remat=remat)) for remat in ("none", "light", "dots", "full")
    )
    # Full keeps the token before each block, of 16 numbers; dots adds query, key, value, what attention mixed of them,
    # the token after it (5 x 16), and the hidden numbers of the MLP (2 x 16); light adds both norms and the GELU. The
    # MLP's output is not needed again.
    assert full == 16
    assert dots == 16 + 5 * 16 + 2 * 16
    assert light == dots + 2 * 16 + 2 * 16
    assert none > 1.3 * light


def test_the_program_of_scanned_blocks_does_not_grow_with_depth():
    def lines(depth):
        model = ImageModel(dataclasses.replace(IMAGE, depth=depth), 8, layers=Layers(scan=True, remat="full"))
        params = jax.eval_shape(model.init, jax.random.key(0), PIXELS)["params"]
        gradient = jax.grad(lambda params: model.apply({"params": params}, PIXELS).sum())
        return len(jax.jit(gradient).lower(params).as_text().splitlines())

    assert lines(12) == lines(32)
