"""Time and memory of the exact softmax and its gradient, against four bare products in its tiles and the naive one."""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from trainer.configs.base import override
from trainer.configs.experiments import get_experiment
from trainer.losses.softmax import chosen_tile, sharded_softmax
from trainer.mesh import make_mesh, state_shardings
from trainer.optimizer import make_optimizer
from trainer.state import State
from trainer.train_step import make_train_step

MEMORY_CLASSES = 2**21


def naive_softmax(embeddings, vectors, scale, labels):
    square = (vectors * vectors).sum(axis=1, keepdims=True)
    logits = scale * (embeddings @ (vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))).T)
    return (jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels]).mean()


def four_products(tile: int) -> Callable[..., Any]:
    """The products alone: logits, logits again, and the gradients of embeddings and vectors."""

    def run(embeddings, vectors, scale, labels):
        def rows(number):
            return jax.lax.dynamic_slice_in_dim(vectors, number * tile, tile)

        def forward(number, total):
            return total + (rows(number) @ embeddings.T)[0]

        def backward(number, sums):
            products = rows(number) @ embeddings.T
            to_vectors = jax.lax.dynamic_update_slice_in_dim(sums[1], products @ embeddings, number * tile, axis=0)
            return sums[0] + products.T @ rows(number), to_vectors

        count = len(vectors) // tile
        total = jax.lax.fori_loop(0, count, forward, jnp.zeros(len(embeddings)))
        return total, jax.lax.fori_loop(0, count, backward, (jnp.zeros_like(embeddings), jnp.zeros_like(vectors)))

    return run


def arguments(num_classes: int, dim: int, batch: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    embeddings = jax.random.normal(keys[0], (batch, dim))
    embeddings /= jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors = 0.05 * jax.random.normal(keys[1], (num_classes, dim))
    return embeddings, vectors, jnp.float32(16.0), jax.random.randint(keys[2], (batch,), 0, num_classes)


def value_and_gradient(loss: Callable[..., Any]) -> Any:
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def least_seconds(
    functions: dict[str, Any], given: tuple[jax.Array, ...], rounds: int
) -> dict[str, tuple[float, float]]:
    """Of each function the least seconds, by the wall and of all cores, of rounds in which each runs once."""
    least = {name: (float("inf"), float("inf")) for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(*given))
            if number:  # the first round compiles
                spent = time.perf_counter() - start[0], time.process_time() - start[1]
                least[name] = min(least[name][0], spent[0]), min(least[name][1], spent[1])
    return least


def temporaries(loss: Callable[..., Any], num_classes: int, dim: int, batch: int) -> int:
    shapes = jax.eval_shape(lambda: arguments(num_classes, dim, batch))
    return value_and_gradient(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def step_seconds(
    rates: tuple[float, ...], num_classes: int, dim: int, batch: int, rounds: int
) -> dict[float, tuple[float, float]]:
    """Of each rate the least seconds of a whole step of the classifier alone, with drawing and update, in turns.

    By the wall, and of all cores. The steps share one state, so that memory holds it once.
    """
    mesh, base = make_mesh(1, 1), get_experiment("supervised_demo")
    optimizer = make_optimizer(base.optimizer, 100)
    models = SimpleNamespace(image=SimpleNamespace(apply=lambda variables, inputs: inputs), text=None)

    def initial() -> State:
        vectors = arguments(num_classes, dim, batch)[1]
        params = {"class_vectors": vectors, "log_class_scale": jnp.log(16.0), "image": {"bias": jnp.zeros(1)}}
        return State(params=params, opt_state=optimizer.init(params))

    state = jax.jit(initial)()
    shardings = state_shardings(mesh, state)
    experiments = {rate: override(base, [f"loss.sample_rate={rate}"]) for rate in rates}
    steps = {
        rate: make_train_step(experiment, models, optimizer, mesh, shardings, num_classes)
        for rate, experiment in experiments.items()
    }
    embeddings, _, _, labels = arguments(num_classes, dim, batch)
    least = {rate: (float("inf"), float("inf")) for rate in rates}
    for number in range(rounds + 2):
        for rate, step in steps.items():
            start = time.perf_counter(), time.process_time()
            state, metrics = step(state, {"images": embeddings, "class_ids": labels})
            jax.block_until_ready((state, metrics))
            if number >= 2:  # the first two compile
                spent = time.perf_counter() - start[0], time.process_time() - start[1]
                least[rate] = min(least[rate][0], spent[0]), min(least[rate][1], spent[1])
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=2**17, help="for the times; a multiple of the tile")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step-classes", type=int, default=2**21, help="for the whole step: 2^21 take 15 GB; 0: none")
    options = parser.parse_args()
    mesh, size = make_mesh(1, 1), (options.dim, options.batch)

    def exact(num_classes: int, dtype: str = "float32") -> Callable[..., Any]:
        return sharded_softmax(mesh, num_classes=num_classes, dtype=dtype)

    ours = temporaries(exact(MEMORY_CLASSES), MEMORY_CLASSES, *size)
    naive = temporaries(naive_softmax, MEMORY_CLASSES, *size)
    print(f"temporaries at {MEMORY_CLASSES:,} x {size[0]}, batch {size[1]}: {ours / 1e6:.1f} MB")
    print(f"  {100 * ours / naive:.2f} % of the naive one's {naive / 1e6:.0f} MB (goal: at most 1 %)")
    for num_classes in (2**20, 2**20 + 3, 2**22):
        print(f"  at {num_classes:,} classes: {temporaries(exact(num_classes), num_classes, *size) / 1e6:.1f} MB")

    tile = chosen_tile(options.batch, options.dim, jax.default_backend())
    functions = {
        "exact": value_and_gradient(exact(options.classes)),
        "exact, bfloat16": value_and_gradient(exact(options.classes, "bfloat16")),
        "four products": jax.jit(four_products(tile)),
        "naive": value_and_gradient(naive_softmax),
    }
    least = least_seconds(functions, arguments(options.classes, *size), options.rounds)
    print(f"{options.classes:,} classes in tiles of {tile:,}; seconds by the wall, and of all cores")
    for name, (wall, cores) in least.items():
        print(f"{name:20}{wall:8.3f} s {cores:8.3f} s")
    for name, goal in (("four products", 1.15), ("naive", 0.95)):
        wall, cores = (mine / other for mine, other in zip(least["exact"], least[name], strict=True))
        print(f"  exact: {wall:.2f} x the time of the {name}, {cores:.2f} x on all cores (goal: at most {goal})")

    if options.step_classes:
        print(f"whole step of {options.step_classes:,} classes, with AdamW; seconds by the wall, and of all cores")
        steps = step_seconds((1.0, 0.1), options.step_classes, *size, options.rounds)
        for rate, (wall, cores) in steps.items():
            print(f"sample_rate {rate:<8}{wall:8.3f} s {cores:8.3f} s")
        wall, cores = (exact / sampled for exact, sampled in zip(steps[1.0], steps[0.1], strict=True))
        print(f"  exact: {wall:.1f} x the time of the sample, {cores:.1f} x on all cores (goal: at least 8)")


if __name__ == "__main__":
    main()
