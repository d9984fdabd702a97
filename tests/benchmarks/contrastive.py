"""Time and memory of the contrastive loss and its gradient, against the one that holds all logits at once."""

import argparse

import jax
import jax.numpy as jnp
from head import least_seconds, value_and_gradient

from trainer.losses.contrastive import sharded_contrastive
from trainer.mesh import make_mesh

NUM_GROUPS = 8  # of an image, as in training


def naive_contrastive(images, texts, scale, image_groups, text_groups):
    own = jnp.eye(len(texts), dtype=bool)
    same = jnp.zeros_like(own)
    for groups in image_groups.T:
        same |= groups[:, None] == text_groups[None]
    logits = jnp.where(same & ~own, -1e30, scale * (images @ texts.T))
    right = jnp.where(own, logits, 0).sum(axis=1)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0) - 2 * right
    return both.mean() / 2


def arguments(batch: int, dim: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    images, texts = (jax.random.normal(key, (batch, dim)) for key in keys[:2])
    groups = jax.random.randint(keys[2], (batch, 1), 0, batch)
    padding = jnp.full((batch, NUM_GROUPS - 1), -1)
    units = [rows / jnp.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts + 0.3 * images)]
    return *units, jnp.float32(14.0), jnp.concatenate([groups, padding], axis=1), groups[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    given = arguments(options.batch, options.dim)
    functions = {
        "in tiles": value_and_gradient(sharded_contrastive(make_mesh(1, 1))),
        "naive": value_and_gradient(naive_contrastive),
    }
    ours, naive = (
        function.lower(*given).compile().memory_analysis().temp_size_in_bytes for function in functions.values()
    )
    print(f"temporaries at {options.batch:,} x {options.dim}: {ours / 1e6:.1f} MB, naive {naive / 1e6:.1f} MB")
    print(f"  {100 * ours / naive:.1f} % (goal: at most 5 %)")
    least = least_seconds(functions, given, options.rounds)
    for name, (wall, cores) in least.items():
        print(f"{name:20}{wall:8.3f} s {cores:8.3f} s of all cores")
    wall, cores = (mine / other for mine, other in zip(least["in tiles"], least["naive"], strict=True))
    print(f"  in tiles: {wall:.2f} x the time, {cores:.2f} x on all cores (goal: at most 1.25)")


if __name__ == "__main__":
    main()
