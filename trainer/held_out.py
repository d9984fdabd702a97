"""Loss and retrieval on the records that training leaves out, measured while a run goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.data import ReadExample, held_out_positions
from trainer.mesh import batch_sharding, replicated
from trainer.objective import make_objective
from trainer.run import Run
from trainer.state import make_models
from trainer.train_step import make_embed

_CHUNK_ROWS = 1024  # ours: rows whose cosines with all others are in memory at once


class HeldOut:
    """Measures parameters on the whole batches of records that are held out; pictures are not augmented.

    Args:
        run: the run; its experiment says how many batches are held out.
        read: what reads the records of the set.
        arrays: the names of the arrays that a batch of the losses has, beside `images`.
    """

    def __init__(self, run: Run, read: ReadExample, arrays: list[str]):
        self._run, self._read, self._arrays = run, read, arrays
        self._positions = held_out_positions(run.experiment, read.num_records)
        objective = make_objective(run.experiment, run.devices, run.corpus.num_classes)
        embed = make_embed(make_models(run.experiment, run.devices), run.devices)

        def measure(params: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, Any]:
            embeddings = embed(params, batch)
            _, metrics = objective(params, embeddings, batch)
            return {**embeddings, "metrics": metrics}

        shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
        self._measure = jax.jit(
            measure, in_shardings=(shardings, batch_sharding(run.devices)), out_shardings=replicated(run.devices)
        )

    def measured(self, params: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics by name, each with `held_out_` before it.

        Losses are means over the batches. `image_recall` is the share of pictures whose nearest other picture has an
        entity in common with it, of those for which there is one; `text_recall` the share of those whose nearest text
        is one of their own.
        """
        size = self._run.experiment.data.batch_size
        found: list[dict[str, Any]] = []
        for start in range(0, len(self._positions), size):
            batch, groups = self._batch(self._positions[start : start + size])
            found.append({**jax.device_get(self._measure(params, batch)), **groups})
        metrics = {
            f"held_out_{name}": float(np.mean([part["metrics"][name] for part in found]))
            for name in found[0]["metrics"]
            if name.endswith("loss")
        }
        joined = {name: np.concatenate([part[name] for part in found]) for name in found[0] if name != "metrics"}
        if self._run.corpus.labelled:
            recall = image_recall(joined["images"], joined["image_groups"])
            metrics |= {} if recall is None else {"held_out_image_recall": recall}
        if "texts" in joined:
            metrics["held_out_text_recall"] = text_recall(
                joined["images"], joined["texts"], joined["image_groups"], joined["text_groups"]
            )
        return metrics

    def _batch(self, positions: np.ndarray) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
        """Returns a batch on the mesh, and the groups of all its rows in every process."""
        run = self._run
        rows = batch_sharding(run.devices)
        per_process = len(positions) // jax.process_count()
        mine = positions[jax.process_index() * per_process :][:per_process]
        with ThreadPoolExecutor(run.experiment.data.threads) as threads:
            examples = list(threads.map(self._example, mine.tolist()))
        local = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        arrays = {name: local[name] for name in self._arrays}
        arrays["images"] = run.preprocessing.normalise(local["pixels"])
        batch = {
            name: jax.make_array_from_process_local_data(rows, np.asarray(values)) for name, values in arrays.items()
        }
        groups = {
            name: np.asarray(_gathered(run, jax.make_array_from_process_local_data(rows, local[name])))
            for name in ("image_groups", "text_groups")
        }
        return batch, groups

    def _example(self, position: int) -> dict[str, np.ndarray]:
        # The same entity and text are drawn each time.
        return self._read(position, np.random.default_rng([self._run.experiment.seed, position]))


def _gathered(run: Run, values: jax.Array) -> jax.Array:
    """Returns the rows of all processes, on each of them."""
    whole: jax.Array = jax.jit(jnp.copy, out_shardings=replicated(run.devices))(values)
    return whole


def image_recall(images: np.ndarray, groups: np.ndarray) -> float | None:
    """Returns the share of images whose nearest other one shares a group; None if no two do.

    Args:
        images: float32 [N, D], L2-normalised.
        groups: int32 [N, G], padded with -1. Images that share a group with no other do not count.
    """
    hits: list[np.ndarray] = []
    for start in range(0, len(images), _CHUNK_ROWS):
        here = np.arange(start, min(start + _CHUNK_ROWS, len(images)))
        same = np.zeros((len(here), len(images)), bool)
        for of_chunk in groups[here].T:
            for of_all in groups.T:
                same |= (of_chunk[:, None] == of_all[None]) & (of_chunk >= 0)[:, None]
        same[here - start, here] = False
        cosines = images[here] @ images.T
        cosines[here - start, here] = -np.inf
        nearest = same[here - start, cosines.argmax(axis=1)]
        hits.append(nearest[same.any(axis=1)])
    counted = np.concatenate(hits)
    return float(counted.mean()) if len(counted) else None


def text_recall(images: np.ndarray, texts: np.ndarray, image_groups: np.ndarray, text_groups: np.ndarray) -> float:
    """Returns the share of images whose nearest text is of one of their groups.

    Args:
        images: float32 [N, D], L2-normalised.
        texts: float32 [N, D], L2-normalised.
        image_groups: int32 [N, G], padded with -1.
        text_groups: int32 [N], not negative.
    """
    hits = []
    for start in range(0, len(images), _CHUNK_ROWS):
        nearest = (images[start : start + _CHUNK_ROWS] @ texts.T).argmax(axis=1)
        hits.append((image_groups[start : start + _CHUNK_ROWS] == text_groups[nearest][:, None]).any(axis=1))
    return float(np.concatenate(hits).mean())
