"""Fine-tuning of an encoder artefact, with no model code: its image function carries its gradient.

All parameters of the image function are trained, with a linear head on the embeddings, by SGD with momentum, a linear
warm-up and a cosine schedule. The artefact's embeddings have length 1; the head sees them times the square root of
their width, so that a value is about as large as those of features that nobody normalised. The head starts at zero.
Pictures are preprocessed as the encoder asks. Only their order is random, and a seed fixes it: the same call on the
same kind of machine gives the same numbers. A finished run is not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.models.arrays import read_kept
from evaluation.models.embed import preprocessing_of
from evaluation.progress import progress
from evaluation.protocol import hash_of
from evaluation.sets.images import ImageSet, LabelledImages
from pipeline.schema import UserError
from pipeline.storage.disk import new_file

if TYPE_CHECKING:
    from trainer.encoder import Encoder

_VERSION = 2  # of how a run goes and how pictures are decoded: finished runs of another version are not taken
_CHUNKS_AHEAD = 4  # chunks of pictures that wait, decoded


class Diverged(UserError):
    """A loss that is not finite: the learning rate is too high."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """How to fine-tune. The defaults follow Dosovitskiy et al. 2021 on VTAB; the warm-up is this project's choice."""

    learning_rate: float = 0.01  # the highest
    num_steps: int = 2500
    batch_size: int = 512
    momentum: float = 0.9
    warmup_steps: int = 100
    max_gradient_norm: float = 1.0
    seed: int = 0  # of the order of the pictures
    chunk_rows: int = 64  # of a batch that are in the model at a time; changes sums by rounding only
    cache_bytes: int = 2 << 30  # preprocessed pictures are kept up to this size, else they are decoded in each epoch

    def __post_init__(self) -> None:
        for name in ("learning_rate", "num_steps", "batch_size", "max_gradient_norm", "chunk_rows"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum is {self.momentum}; it must be from 0 to below 1")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")

    def settings(self) -> dict[str, Any]:
        """Returns the fields that change the result by more than rounding."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in ("chunk_rows", "cache_bytes")
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuned:
    """An encoder's image function with trained parameters, and its head."""

    encoder: Encoder
    params: dict[str, Any]
    kernel: np.ndarray  # float32 [dim, classes]
    bias: np.ndarray  # float32 [classes]
    losses: np.ndarray  # float32 [steps], the mean cross-entropy of each batch before its step
    chunk_rows: int

    def predict(self, images: ImageSet) -> np.ndarray:
        """Returns the class of each picture, int64 `[n]`; of equal scores the smaller class.

        Raises:
            UserError: a picture cannot be read.
        """
        embed = _functions(self.encoder).embed
        scale = np.float32(np.sqrt(self.kernel.shape[0]))
        found = np.zeros(len(images), np.int64)
        chunks = _chunks(np.arange(len(images)), self.chunk_rows)
        with progress(len(images), f"classify {images.name}", "img") as bar:
            for positions, pixels in zip(chunks, _loaded(self.encoder, images, chunks, None), strict=True):
                embedded = np.asarray(embed(self.params, _padded(pixels, self.chunk_rows)))[: len(pixels)]
                found[positions] = (embedded * scale @ self.kernel + self.bias).argmax(axis=1)
                bar.update(len(positions))
        return found


def predictions(
    encoder: Encoder,
    train: LabelledImages,
    scored: ImageSet,
    num_classes: int,
    config: FineTuneConfig,
    *,
    cache_dir: Path | None = None,
) -> np.ndarray:
    """Returns the class of each picture of `scored`, int64 `[n]`, by the encoder fine-tuned on `train`.

    Args:
        encoder: see `fine_tune`.
        train: see there.
        scored: to classify.
        num_classes: see there.
        config: see there.
        cache_dir: where the predictions of finished runs are kept, known by all of the above; None: nowhere.

    Raises:
        UserError: see `fine_tune`.
        Diverged: see there.
    """
    known = [
        _VERSION,
        encoder.hash,
        preprocessing_of(encoder),
        num_classes,
        config.settings(),
        hashlib.sha256(train.truth).hexdigest(),
    ]
    known += [[images.fingerprint, hash_of(images.ids.tolist())] for images in (train.images, scored)]
    path = None if cache_dir is None else cache_dir / f"fine-tuned-{hash_of([json.dumps(known)])[:24]}.npy"
    # A run that diverged is kept as no predictions.
    found = None if path is None else read_kept(path, ndim=1, lengths=(len(scored), 0), remedy="training again")
    if found is None:
        try:
            found = fine_tune(encoder, train.images, train.labels, num_classes, config).predict(scored)
        except Diverged:
            _keep(path, np.zeros(0, np.int64))
            raise
        _keep(path, found)
    if len(found) == 0:
        raise Diverged(f"the loss of {train.images.name} was not finite at learning rate {config.learning_rate}")
    return found


def _keep(path: Path | None, predictions: np.ndarray) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            np.save(file, predictions)
    except OSError as error:  # they are here, and worth more than the file
        print(f"warning: {path} cannot be written ({error}); a rerun will train again", file=sys.stderr)


def fine_tune(
    encoder: Encoder, images: ImageSet, labels: np.ndarray, num_classes: int, config: FineTuneConfig
) -> FineTuned:
    """Returns the encoder fine-tuned to tell the classes of `images` apart; `encoder` itself stays as it is.

    Args:
        encoder: a `trainer.encoder.Encoder`.
        images: to train on; every epoch has each once, in a new order, and batches run on across epochs.
        labels: int `[n]`, from 0.
        num_classes: of the head, above every label.
        config: how.

    Raises:
        UserError: there is no picture, a label is outside the classes, or a picture cannot be read.
        Diverged: the loss is not finite.
    """
    import jax
    import jax.numpy as jnp
    import optax

    labels = np.asarray(labels)
    if len(images) == 0 or labels.shape != (len(images),):
        raise UserError(
            f"{images.name} has {len(images)} pictures and labels {labels.shape}; give one label per picture"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels of {images.name} are {labels.min()} to {labels.max()}; they must be from 0 to {num_classes - 1}"
        )
    # Integers among the parameters (tables of positions) have no gradient. Half precision would lose small
    # steps, so it is trained in float32.
    floats = {
        name: jnp.asarray(value, jnp.float32)
        for name, value in encoder.image_params.items()
        if jnp.issubdtype(value.dtype, jnp.floating)
    }
    fixed = {name: value for name, value in encoder.image_params.items() if name not in floats}
    trained: dict[str, Any] = {
        "image": floats,
        "kernel": jnp.zeros((encoder.embedding_dim, num_classes), jnp.float32),
        "bias": jnp.zeros(num_classes, jnp.float32),
    }
    functions = _functions(encoder)
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.sgd(lambda step: _learning_rate(config, step), momentum=config.momentum),
    )
    update = jax.jit(functools.partial(_updated, optimiser))
    num_rows = min(config.chunk_rows, config.batch_size)
    state = optimiser.init(trained)
    cache = _Cache(encoder, images) if len(images) * encoder.image_size_px**2 * 12 <= config.cache_bytes else None
    batches = _batches(len(images), config)
    chunks = [chunk for batch in batches for chunk in _chunks(batch, num_rows)]
    pixels = _loaded(encoder, images, chunks, cache)
    losses = []
    with progress(config.num_steps, f"fine-tune {images.name}", "step") as bar:
        for batch in batches:
            total: Any = 0.0
            summed: Any = None
            for chunk in _chunks(batch, num_rows):
                weights = _padded(np.full(len(chunk), 1 / len(batch), np.float32), num_rows)
                loss, one = functions.gradient(
                    trained, fixed, _padded(next(pixels), num_rows), _padded(labels[chunk], num_rows), weights
                )
                summed = one if summed is None else jax.tree.map(jnp.add, summed, one)
                total += loss
            trained, state = update(trained, state, summed)
            losses.append(float(total))
            if not np.isfinite(losses[-1]):
                raise Diverged(
                    f"the loss of {images.name} is {losses[-1]} at step {len(losses)} with learning rate "
                    f"{config.learning_rate}; give a lower one"
                )
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
    return FineTuned(
        encoder=encoder,
        params=fixed | _stored(trained["image"], encoder),
        kernel=np.asarray(trained["kernel"]),
        bias=np.asarray(trained["bias"]),
        losses=np.array(losses, np.float32),
        chunk_rows=config.chunk_rows,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Functions:
    """What is compiled of an encoder."""

    gradient: Callable[..., Any]  # trained, fixed, pixels, classes, weights of rows -> loss, gradient
    embed: Callable[..., Any]  # params, pixels -> embeddings


@functools.lru_cache(maxsize=1)
def _functions(encoder: Encoder) -> _Functions:
    """Returns the functions of `encoder`, compiled once for all the runs of a sweep."""
    import jax
    import optax

    scale = np.float32(np.sqrt(encoder.embedding_dim))

    def loss_of(trained: Any, fixed: Any, pixels: jax.Array, classes: jax.Array, weights: jax.Array) -> jax.Array:
        embedded = encoder.image_function(fixed | _stored(trained["image"], encoder), pixels) * scale
        logits = embedded @ trained["kernel"] + trained["bias"]
        loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, classes) @ weights
        return loss

    return _Functions(gradient=jax.jit(jax.value_and_grad(loss_of)), embed=jax.jit(encoder.image_function))


def _stored(params: Any, encoder: Encoder) -> dict[str, Any]:
    """Returns parameters in the precision in which the encoder's function takes them."""
    return {name: value.astype(encoder.image_params[name].dtype) for name, value in params.items()}


def _updated(optimiser: Any, trained: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
    import optax

    updates, state = optimiser.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state


def _learning_rate(config: FineTuneConfig, step: Any) -> Any:
    import jax.numpy as jnp

    warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * step / config.num_steps))


def _padded(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns `rows` with zeros after them: one shape is compiled once."""
    return np.pad(rows, [(0, num_rows - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _batches(num_pictures: int, config: FineTuneConfig) -> list[np.ndarray]:
    """Returns the positions of each batch: orders of all pictures, one after the other, cut into batches."""
    num_rows = config.num_steps * config.batch_size
    random = np.random.default_rng(config.seed)
    epochs = [random.permutation(num_pictures) for _ in range(-(-num_rows // num_pictures))]
    return np.split(np.concatenate(epochs)[:num_rows], config.num_steps)


def _chunks(positions: np.ndarray, num_rows: int) -> list[np.ndarray]:
    return [positions[start : start + num_rows] for start in range(0, len(positions), num_rows)]


class _Cache:
    """Preprocessed pictures, each decoded once."""

    def __init__(self, encoder: Encoder, images: ImageSet):
        size = encoder.image_size_px
        self.pixels = np.zeros((len(images), size, size, 3), np.float32)
        self.filled = np.zeros(len(images), bool)


def _loaded(
    encoder: Encoder, images: ImageSet, chunks: Sequence[np.ndarray], cache: _Cache | None
) -> Iterator[np.ndarray]:
    """Returns float32 `[rows, S, S, 3]` for each chunk of positions; threads read and decode some chunks ahead."""

    def load(position: int) -> np.ndarray:
        if cache is not None and cache.filled[position]:
            kept: np.ndarray = cache.pixels[position]
            return kept
        pixels = encoder.preprocess(images.open(position)[0])
        if cache is not None:
            cache.pixels[position] = pixels
            cache.filled[position] = True
        return pixels

    waiting: deque[list[Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for chunk in chunks:
                waiting.append([pool.submit(load, int(position)) for position in chunk])
                if len(waiting) > _CHUNKS_AHEAD:
                    yield np.stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
