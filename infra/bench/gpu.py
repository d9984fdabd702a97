"""Measures the trainer on one accelerator, beside PyTorch where timm and torch are installed. One JSON line per row.

    python infra/bench/gpu.py                      # on a GPU: some 8 minutes at most
    python infra/bench/gpu.py --small              # the same rows at small sizes, for a CPU
    python infra/bench/gpu.py --rows head multitask

Each row runs in a process of its own, so that no row sees the memory or the caches of another. It reads nothing and
needs no network: batches are random numbers on the device. A row of PyTorch is skipped where timm is missing. A row
that fails, or for which no time is left, says so in its line; the exit status is then 1. Columns:

    row, device        what was measured, and on what
    ms                 of one step or call, the median of the timed ones
    images_per_s       images of the batch by that time
    tflops, peak_share model FLOPs a second (3 forward products, no recomputation, no optimiser), and their share of the
                       matrix product that the same process measured, in the same type
    temporaries_gb     of the compiled program, by XLA's own analysis
    plan_gb            of the device's memory by `make plan`, state included
    peak_gb            that the device has held, where it says so
    compile_s          until the first step had ended
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_GB = 1e9
_TIMED, _WARM = 10, 2  # calls
_STEPS_S = 20.0  # no more calls are timed after it


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the rows are measured at."""

    overrides: tuple[str, ...]  # of the experiments at B/16
    tower_batch: int
    pair_batch: int
    multitask_batch: int
    num_classes: int
    head_dim: int
    head_batches: tuple[int, ...]
    attention: tuple[int, int, int, int]  # batch, tokens, heads, channels of a head
    product: int


FULL = Sizes((), 512, 1024, 512, 2**21, 512, (1024, 4096), (128, 256, 16, 64), 8192)
SMALL = Sizes(
    (
        "image.image_size_px=32", "image.width=64", "image.num_heads=2", "image.depth=2", "text.width=64",
        "text.num_heads=2", "text.depth=2", "text.context_length=8", "text.vocabulary_size=512", "embedding_dim=64",
    ),
    8, 8, 8, 4096, 64, (16,), (2, 16, 2, 32), 256,
)  # fmt: skip


def seconds(call: Callable[[], Any], ready: Callable[[Any], Any]) -> tuple[float, float]:
    """Returns the seconds of the first call, and the median of the timed ones.

    Args:
        call: what is measured.
        ready: waits until what it returned is there.
    """
    start = time.perf_counter()
    ready(call())
    first = time.perf_counter() - start
    for _ in range(_WARM):
        ready(call())
    timed: list[float] = []
    while len(timed) < _TIMED and sum(timed) < _STEPS_S:
        start = time.perf_counter()
        ready(call())
        timed.append(time.perf_counter() - start)
    return first, statistics.median(timed)


def product_flops(sizes: Sizes, dtype: str) -> float:
    """Returns the FLOPs a second of one square matrix product with factors of `dtype`."""
    import jax
    import jax.numpy as jnp

    one = jnp.ones((sizes.product, sizes.product), dtype)
    multiply = jax.jit(lambda a: jax.lax.dot(a, a, preferred_element_type=jnp.float32))
    _, median = seconds(lambda: multiply(one), jax.block_until_ready)
    return 2.0 * sizes.product**3 / median


def peak_gb() -> dict[str, float]:
    """Returns the peak of the device's memory, where it says so."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_gb": stats["peak_bytes_in_use"] / _GB} if "peak_bytes_in_use" in stats else {}


def temporaries_gb(compiled: Any) -> float:
    """Returns what a compiled program takes beside its arguments and results."""
    return float(compiled.memory_analysis().temp_size_in_bytes / _GB)


def train_row(
    kind: str, batch_size: int, sizes: Sizes, *, num_classes: int, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns time and memory of a training step of the experiment `kind`, and the time until its state was there."""
    import jax
    import numpy as np

    from trainer.configs.base import override
    from trainer.configs.experiments import get_experiment
    from trainer.flops import step_flops
    from trainer.memory_plan import planned_memory
    from trainer.mesh import batch_sharding, make_mesh
    from trainer.optimizer import make_optimizer
    from trainer.state import abstract_state, init_state, make_models
    from trainer.train_step import make_train_step

    overrides = (*sizes.overrides, f"data.batch_size={batch_size}", "remat=light", *more)
    experiment = override(get_experiment(f"{kind}_b16"), overrides)
    mesh = make_mesh(1, 1)
    models, optimizer = make_models(experiment), make_optimizer(experiment.optimizer, experiment.steps)
    abstract = abstract_state(experiment, models, optimizer, mesh, num_classes)
    size = experiment.image.image_size_px
    random = np.random.default_rng(0)
    start = time.perf_counter()
    some = random.normal(size=(2, size, size, 3)).astype(np.float32)
    state = jax.block_until_ready(init_state(experiment, models, optimizer, mesh, num_classes, some))
    start_s = time.perf_counter() - start
    batch: dict[str, Any] = {"images": random.normal(size=(batch_size, size, size, 3)).astype(np.float32)}
    if experiment.classifies:
        batch["class_ids"] = random.integers(num_classes, size=batch_size).astype(np.int32)
    if experiment.contrasts:
        shape = (batch_size, experiment.text.context_length)
        batch["tokens"] = random.integers(3, experiment.text.vocabulary_size, size=shape).astype(np.int32)
        batch["text_groups"] = np.arange(batch_size, dtype=np.int32)
        batch["image_groups"] = np.arange(batch_size, dtype=np.int32)[:, None]
    batch = jax.device_put(batch, batch_sharding(mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    fastest = make_models(experiment, mesh)
    step = make_train_step(experiment, fastest, optimizer, mesh, shardings, num_classes)
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()  # type: ignore[attr-defined]
    compile_s = time.perf_counter() - start
    held = [state]

    def call() -> Any:
        held[0], metrics = compiled(held[0], batch)
        return metrics["loss"]

    _, median = seconds(call, jax.block_until_ready)
    flops = step_flops(experiment, num_classes) / median
    found = {
        "batch_size": batch_size,
        "attention": fastest.image.layers.attention,
        "images_per_s": batch_size / median,
        "ms": 1e3 * median,
        "tflops": flops / 1e12,
        "temporaries_gb": temporaries_gb(compiled),
        "plan_gb": planned_memory(experiment, abstract, mesh).total(batch_size) / _GB,
        "compile_s": compile_s,
        "start_s": start_s,
        **peak_gb(),
    }
    held.clear()  # room for the factors of the product
    return {**found, "peak_share": flops / product_flops(sizes, experiment.dtype)}


def timm_row(sizes: Sizes, *, small: bool) -> dict[str, Any]:
    """Returns the time of PyTorch's training step: timm's tower of the same size, compiled, with AdamW."""
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    name = "vit_tiny_patch16_224" if small else "vit_base_patch16_224"
    model = timm.create_model(name, num_classes=1000, img_size=32 if small else 224).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    side = 32 if small else 224
    images = torch.randn(sizes.tower_batch, 3, side, side, device=device)
    labels = torch.randint(1000, (sizes.tower_batch,), device=device)
    forward = model if small else torch.compile(model)

    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    def ready(loss: Any) -> None:
        loss.item()

    first, median = seconds(call, ready)
    memory = {"peak_gb": torch.cuda.max_memory_allocated() / _GB} if device == "cuda" else {}
    images_per_s = sizes.tower_batch / median
    return {
        "batch_size": sizes.tower_batch, "images_per_s": images_per_s, "ms": 1e3 * median, "compile_s": first,
        "torch": torch.__version__, "timm": timm.__version__, "device": _torch_device(torch, device), **memory,
    }  # fmt: skip


def _torch_device(torch: Any, device: str) -> str:
    return str(torch.cuda.get_device_name()) if device == "cuda" else "cpu"


def head_row(batch_size: int, sizes: Sizes, which: str) -> dict[str, Any]:
    """Returns time and memory of the exact softmax, its value and gradient, or of what it is compared with.

    Args:
        batch_size: embeddings.
        sizes: classes and their dimension.
        which: "ours"; "naive", with all logits in memory; or "products": four products of the same sizes, in tiles.
    """
    import jax
    import jax.numpy as jnp

    from trainer.losses.softmax import chosen_tile, sharded_softmax
    from trainer.mesh import make_mesh

    classes, dim = sizes.num_classes, sizes.head_dim
    keys = jax.random.split(jax.random.key(0), 3)
    embeddings = jax.random.normal(keys[0], (batch_size, dim)) / dim**0.5
    vectors = 0.05 * jax.random.normal(keys[1], (classes, dim))
    labels = jax.random.randint(keys[2], (batch_size,), 0, classes)
    scale = jnp.float32(16.0)
    tile = min(chosen_tile(batch_size, dim, jax.default_backend()), classes)
    if which == "ours":
        loss = sharded_softmax(make_mesh(1, 1), num_classes=classes)
    else:
        loss = naive_loss
    call = jax.jit(products_in_tiles(tile) if which == "products" else jax.value_and_grad(loss, argnums=(0, 1, 2)))
    compiled = call.lower(embeddings, vectors, scale, labels).compile()
    first, median = seconds(lambda: compiled(embeddings, vectors, scale, labels), jax.block_until_ready)
    flops = 8.0 * batch_size * classes * dim / median
    return {
        "batch_size": batch_size, "num_classes": classes, "tile": tile, "ms": 1e3 * median, "tflops": flops / 1e12,
        "temporaries_gb": temporaries_gb(compiled), "compile_s": first, **peak_gb(),
    }  # fmt: skip


def naive_loss(embeddings: Any, vectors: Any, scale: Any, labels: Any) -> Any:
    """Returns the mean softmax cross-entropy of cosines, with all logits in memory."""
    import jax
    import jax.numpy as jnp

    unit = vectors * jax.lax.rsqrt(jnp.maximum((vectors * vectors).sum(axis=1, keepdims=True), 1e-12))
    logits = scale * embeddings @ unit.T
    return (jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels]).mean()


def products_in_tiles(tile: int) -> Callable[..., Any]:
    """Returns the function that computes logits twice, and the products of both gradients, tile by tile."""
    import jax
    import jax.numpy as jnp

    def run(embeddings: Any, vectors: Any, scale: Any, labels: Any) -> Any:
        def of_tile(number: Any, sums: Any) -> Any:
            rows = jax.lax.dynamic_slice_in_dim(vectors, number * tile, tile)
            products = embeddings @ rows.T
            to_vectors = jax.lax.dynamic_update_slice_in_dim(sums[1], products.T @ embeddings, number * tile, axis=0)
            return sums[0] + products @ rows, to_vectors

        def first(number: Any, total: Any) -> Any:
            return total + (embeddings @ jax.lax.dynamic_slice_in_dim(vectors, number * tile, tile).T).max(axis=1)

        count = len(vectors) // tile
        start = (jnp.zeros_like(embeddings), jnp.zeros_like(vectors))
        total = jax.lax.fori_loop(0, count, first, jnp.zeros(len(embeddings)))
        return total, jax.lax.fori_loop(0, count, of_tile, start)

    return run


def attention_row(sizes: Sizes, implementation: Literal["xla", "cudnn"]) -> dict[str, Any]:
    """Returns the time of attention, forward and backward, by XLA or by cuDNN."""
    import jax
    import jax.numpy as jnp

    query = jax.random.normal(jax.random.key(0), sizes.attention, jnp.bfloat16)

    def loss(query: Any, key: Any, value: Any) -> Any:
        attended = jax.nn.dot_product_attention(query, key, value, implementation=implementation)
        return attended.astype(jnp.float32).sum()

    call = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    first, median = seconds(lambda: call(query, query, query), jax.block_until_ready)
    batch, tokens, heads, channels = sizes.attention
    shape = {"batch_size": batch, "tokens": tokens, "heads": heads, "channels": channels}
    return {**shape, "ms": 1e3 * median, "compile_s": first}


def rows(sizes: Sizes, *, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns the rows by name, in the order in which they are measured."""
    tower = functools.partial(train_row, "supervised", sizes.tower_batch, sizes, num_classes=1000)
    multitask = functools.partial(train_row, "multitask", sizes.multitask_batch, sizes)
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "tower": tower,
        "tower_timm": lambda: timm_row(sizes, small=small),
        "multitask": functools.partial(multitask, num_classes=sizes.num_classes),
    }
    for batch_size in sizes.head_batches:
        for which in ("ours", "products", "naive"):
            name = "head" if which == "ours" else f"head_{which}"
            found[f"{name}_{batch_size}"] = functools.partial(head_row, batch_size, sizes, which)
    found["attention_xla"] = functools.partial(attention_row, sizes, "xla")
    found["attention_cudnn"] = functools.partial(attention_row, sizes, "cudnn")
    found["tower_all_kept"] = functools.partial(tower, more=("remat=none",))
    found["tower_deterministic"] = tower
    found["pair"] = functools.partial(train_row, "contrastive", sizes.pair_batch, sizes, num_classes=0)
    return found


def measured(name: str, *, small: bool) -> dict[str, Any]:
    """Returns the line of a row, measured in this process."""
    sizes = SMALL if small else FULL
    found = rows(sizes, small=small)[name]()
    if "torch" in found:
        return {"row": name, **found}
    import jax

    return {"row": name, "device": jax.devices()[0].device_kind, "jax": jax.__version__, **found}


def lines(names: list[str], *, small: bool, limit_s: float) -> Iterator[dict[str, Any]]:
    """Yields the line of each row, from a process of its own; a row that fails has an `error` instead of figures."""
    end = time.monotonic() + limit_s
    for name in names:
        flags = os.environ.get("XLA_FLAGS", "")
        if name == "tower_deterministic":
            flags = f"{flags} {DETERMINISTIC}".strip()
        command = [sys.executable, __file__, "--in-process", name, *["--small"] * small]
        if name == "tower_timm" and not all(map(importlib.util.find_spec, ("torch", "timm"))):
            yield {"row": name, "skipped": "timm or torch is not installed"}
            continue
        left = end - time.monotonic()
        if left <= 0:
            yield {"row": name, "error": f"no time was left of --limit-s {limit_s:g}"}
            continue
        try:
            done = subprocess.run(
                command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            yield {"row": name, "error": f"stopped: --limit-s {limit_s:g} was over"}
            continue
        last = done.stdout.strip().splitlines()[-1:]
        if done.returncode or not last:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            yield {"row": name, "error": reason[:500]}
        else:
            yield json.loads(last[0])


def main() -> int:
    """Returns the exit status: 0, or 1 if a row could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(rows(FULL, small=False)) + [name for name in rows(SMALL, small=True) if name.startswith("head")]
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows to measure, or beginnings of their names")
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU; without cuDNN")
    parser.add_argument("--limit-s", type=float, default=480.0, help="seconds for all rows together")
    parser.add_argument("--in-process", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(measured(args.in_process, small=args.small)), flush=True)
        return 0
    names = list(rows(SMALL if args.small else FULL, small=args.small))
    if args.small:
        names.remove("attention_cudnn")
    for wanted in args.rows or ():
        if not any(name.startswith(wanted) for name in names):
            parser.error(f"--rows {wanted}: no row begins so; the rows are {', '.join(names)}")
    chosen = [name for name in names if not args.rows or name.startswith(tuple(args.rows))]
    failed = False
    for line in lines(chosen, small=args.small, limit_s=args.limit_s):
        print(json.dumps({key: _rounded(value) for key, value in line.items()}), flush=True)
        failed |= "error" in line
    return int(failed)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
