"""Images per second of a training step of ViT-S/16, against a plain ViT of flax.linen, in turns; and its profile."""

from __future__ import annotations

import argparse
import collections
import glob
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.configs.base import Experiment, override
from trainer.configs.experiments import get_experiment
from trainer.mesh import batch_sharding, make_mesh
from trainer.optimizer import make_optimizer
from trainer.state import abstract_state, init_state, make_models
from trainer.train_step import make_train_step

NUM_CLASSES = 1000
S16 = ("image.width=384", "image.num_heads=6", "embedding_dim=384", "scan_layers=false", "remat=none")
# Both towers: the same shapes, the class token pooled, AdamW after gradients are clipped by their norm.
FIELDS = (*S16, "image.pre_norm=false", "dtype=float32", "optimizer.kind=adamw", "loss.class_scale_learned=false")
# The first pattern that the name of an operation matches; a fused operation has the name of its last one.
PARTS = (
    ("products of queries, keys, values and scores", r"BTNH|BNTS"),
    ("projections of attention", r"attention/(query|key|value|out)/(dot_general|transpose)"),
    ("softmax and copies of attention", r"/attention/"),
    ("products of the MLP", r"/(up|down)/(dot_general|transpose)"),
    ("norms", r"norm"),
    ("biases, GELU and sums of the blocks", r"blocks/block_"),
    ("patches and positions", r"ImageModel"),
    ("classifier and loss", r"while|jvp"),
    ("optimiser, norms and checks of gradients", r"^jit\(step\)"),
)


class PlainBlock(nn.Module):
    num_heads: int
    wide: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        normed = nn.LayerNorm(epsilon=1e-6)(tokens)
        tokens = tokens + nn.MultiHeadDotProductAttention(self.num_heads)(normed, normed)
        hidden = nn.gelu(nn.Dense(self.wide)(nn.LayerNorm(epsilon=1e-6)(tokens)))
        return tokens + nn.Dense(tokens.shape[-1])(hidden)


class PlainTower(nn.Module):
    """A vision transformer as tutorials write it."""

    width: int
    depth: int
    num_heads: int
    patch_px: int
    mlp_ratio: int
    num_outputs: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (self.patch_px, self.patch_px)
        tokens = nn.Conv(self.width, patch, strides=patch, padding="VALID")(images)
        tokens = tokens.reshape(len(images), -1, self.width)
        start = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        tokens = jnp.concatenate([jnp.tile(start, (len(images), 1, 1)), tokens], axis=1)
        tokens = tokens + self.param("position", nn.initializers.normal(0.02), (1, *tokens.shape[1:]))
        for _ in range(self.depth):
            tokens = PlainBlock(self.num_heads, self.mlp_ratio * self.width)(tokens)
        embeddings = nn.Dense(self.width)(nn.LayerNorm(epsilon=1e-6)(tokens)[:, 0])
        return nn.Dense(self.num_outputs)(embeddings)


def plain(experiment: Experiment, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Returns the step of a plain tower with a plain softmax, and its state."""
    config, settings = experiment.image, experiment.optimizer
    model = PlainTower(config.width, config.depth, config.num_heads, config.patch_px, config.mlp_ratio, NUM_CLASSES)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup_steps, max(experiment.steps, settings.warmup_steps + 1)
    )
    adamw = optax.adamw(rate, b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm or 1.0), adamw)
    params = jax.jit(model.init)(jax.random.key(0), batch["images"][:1])

    def step(state: tuple[Any, Any], batch: dict[str, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = state

        def loss_of(params: Any) -> jax.Array:
            logits = model.apply(params, batch["images"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["class_ids"]).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0), (params, jax.jit(optimizer.init)(params))


def ours(experiment: Experiment, images: np.ndarray) -> tuple[Any, Any]:
    """Returns the trainer's step of the experiment, and its state."""
    mesh = make_mesh(1, 1)
    models, optimizer = make_models(experiment, mesh), make_optimizer(experiment.optimizer, experiment.steps)
    abstract = abstract_state(experiment, models, optimizer, mesh, NUM_CLASSES)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = init_state(experiment, models, optimizer, mesh, NUM_CLASSES, images)
    return make_train_step(experiment, models, optimizer, mesh, shardings, NUM_CLASSES), state


def profile(step: Any, state: Any, batch: dict[str, jax.Array], count: int) -> tuple[Any, dict[str, float]]:
    """Returns the state after `count` steps, and the seconds of each part of a step, summed over threads."""
    text = step.lower(state, batch).compile().as_text()
    names = dict(re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = .*op_name=\"((?:[^\"\\]|\\.)*)\"", text, re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                state, metrics = step(state, batch)
                jax.block_until_ready((state, metrics))
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path, "rt") as file:
            events = json.load(file)["traceEvents"]
    spent: dict[str, float] = collections.defaultdict(float)
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if operation is None or event.get("ph") != "X":
            continue
        name = names.get(operation, "")
        part = next((part for part, pattern in PARTS if re.search(pattern, name)), "other")
        spent[part] += event["dur"] / 1e6 / count
    return state, dict(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], help="a further field of the config")
    parser.add_argument(
        "--profile", action="store_true", help="print what each part of our step takes, by its operations"
    )
    options = parser.parse_args()
    experiment = override(get_experiment("supervised_b16"), [*FIELDS, f"data.batch_size={options.batch}", *options.set])
    random, size = np.random.default_rng(0), experiment.image.image_size_px
    images = random.normal(size=(options.batch, size, size, 3)).astype(np.float32)
    class_ids = random.integers(NUM_CLASSES, size=options.batch).astype(np.int32)
    batch = jax.device_put({"images": images, "class_ids": class_ids}, batch_sharding(make_mesh(1, 1)))

    steps: dict[str, Callable[..., Any]] = {}
    states: dict[str, Any] = {}
    steps["ours"], states["ours"] = ours(experiment, images)
    steps["linen"], states["linen"] = plain(experiment, batch)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(options.rounds + 2):
        for name in (*steps,) if number % 2 else (*reversed(steps),):
            start = time.perf_counter(), time.process_time()
            states[name], metrics = steps[name](states[name], batch)
            jax.block_until_ready((states[name], metrics))
            if number >= 2:  # the first two compile
                spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    for name, turns in spent.items():
        wall, cores = (statistics.median(one) for one in zip(*turns, strict=True))
        print(f"{name:8}{options.batch / wall:8.2f} images/s {wall:8.3f} s a step {cores:8.3f} s of all cores")
    for i, kind in enumerate(("images/s", "images per second of all cores")):
        ratios = [theirs[i] / mine[i] for mine, theirs in zip(spent["ours"], spent["linen"], strict=True)]
        print(f"  ours: {statistics.median(ratios):.2f} x the {kind} of linen (goal: at least 1.2)")
    if options.profile:
        _, parts = profile(steps["ours"], states["ours"], batch, 3)
        total = sum(parts.values())
        for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"{part:48}{1e3 * seconds:9.0f} ms {100 * seconds / total:6.1f} %")


if __name__ == "__main__":
    main()
