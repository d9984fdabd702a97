"""Reads an encoder from disk. Needs no model code: the functions are exported programs."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from PIL import Image

from trainer.encoder.format import (
    CLASSES_FILE,
    CLASSIFIER_FILE,
    IMAGE_FILE,
    METADATA_FILE,
    READ_VERSIONS,
    TEXT_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Classifier,
    content_hash,
)
from trainer.encoder.pictures import Picture, read_picture
from trainer.encoder.preprocessing import Preprocessing

_LOGITS_AT_ONCE = 1 << 24  # float32, 64 MB


class Prediction(NamedTuple):
    """An entity that a picture may show."""

    entity_id: str
    """Such as "Q89"."""
    name: str
    """In the vocabulary of the set that the encoder was trained on; empty in encoders of older versions."""
    probability: float
    """By the softmax over all classes."""


class Encoder:
    """An image function, with an optional text function and classifier in the same embedding space."""

    def __init__(
        self,
        *,
        metadata: dict[str, Any],
        image_function: Callable[[dict[str, jax.Array], jax.Array], jax.Array],
        text_function: Callable[[dict[str, jax.Array], jax.Array], jax.Array] | None,
        image_params: dict[str, jax.Array],
        text_params: dict[str, jax.Array],
        tokenizer: tokenizers.Tokenizer | None,
        classifier: Classifier | None,
        batch_size: int,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.hash: str = metadata["hash"]
        """Of the contents of the encoder's files, hexadecimal."""
        self.embedding_dim: int = metadata["embedding_dim"]
        """D, the number of values of an embedding."""
        self.image_size_px: int = metadata["image_size_px"]
        """S, the side of the square pictures that the image function takes."""
        self.has_text: bool = metadata["has_text"]
        """Whether there is a text function."""
        self.context_length: int | None = metadata["context_length"]
        """The most tokens of a text; None without a text function."""
        self.preprocessing = Preprocessing.of_json(self.image_size_px, metadata["preprocessing"])
        """How pictures become rows of the image function's input."""
        self.image_function = image_function
        """(flat parameters, float32 `[B, S, S, 3]`) -> float `[B, D]`; differentiable once."""
        self.image_params = image_params
        """The flat parameters of the image function, by name."""
        self.classifier = classifier
        """Class vectors, entity ids and scale; None where the encoder has no classifier."""
        self._text_function, self._text_params, self._tokenizer = text_function, text_params, tokenizer
        self._batch_size = batch_size
        self._devices = list(devices or jax.local_devices())
        self._params_on: dict[tuple[str, jax.Device], dict[str, jax.Array]] = {}
        self._jitted_image = jax.jit(image_function)
        self._jitted_text = jax.jit(text_function) if text_function else None

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], batch_size: int = 64, devices: Sequence[jax.Device] | None = None
    ) -> Encoder:
        """Returns the encoder in directory `path`.

        Args:
            path: a directory that `save_encoder` wrote.
            batch_size: rows per call of the model. Inputs are padded to it, so a row's embedding does not depend on
                how many rows are embedded with it.
            devices: those that share the batches; None means all local devices. A row's embedding does not depend on
                them either.

        Raises:
            ValueError: the directory holds no encoder, or one of another format version, or its files have changed.
        """
        path = os.fspath(path)
        metadata = read_metadata(path)
        weights = safetensors.numpy.load_file(os.path.join(path, WEIGHTS_FILE))
        has_text = metadata["has_text"]
        classifier = None
        if os.path.exists(os.path.join(path, CLASSES_FILE)):
            tensors = safetensors.numpy.load_file(os.path.join(path, CLASSIFIER_FILE))
            with open(os.path.join(path, CLASSES_FILE), encoding="utf-8") as file:
                classes = json.load(file)
            classifier = Classifier(
                weights=tensors["weights"],
                entity_ids=tuple(classes["entity_ids"]),
                names=tuple(classes.get("names", ())),
                scale=float(tensors["scale"].reshape(())),
            )
        return cls(
            metadata=metadata,
            image_function=_read_export(os.path.join(path, IMAGE_FILE)),
            text_function=_read_export(os.path.join(path, TEXT_FILE)) if has_text else None,
            image_params=_with_prefix(weights, "image/"),
            text_params=_with_prefix(weights, "text/"),
            tokenizer=tokenizers.Tokenizer.from_file(os.path.join(path, TOKENIZER_FILE)) if has_text else None,
            classifier=classifier,
            batch_size=batch_size,
            devices=devices,
        )

    @property
    def num_devices(self) -> int:
        """The number of batches that are embedded at once."""
        return len(self._devices)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Returns float32 [S, S, 3], a row for `embed_images`.

        Raises:
            TypeError: `image` is not a PIL image.
            ValueError: a deep greyscale image states no range, see `pipeline.images.decode`.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"the image is a {type(image).__name__}; give a PIL image: open a file with PIL.Image.open, turn "
                "an array into one with PIL.Image.fromarray"
            )
        preprocessed: np.ndarray = self.preprocessing.normalise(self.preprocessing.pixels(image))
        return preprocessed

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 [B, D], L2-normalised, of preprocessed float32 [B, S, S, 3].

        Raises:
            ValueError: the images have another shape, or are integers, which are not preprocessed.
        """
        images = np.asarray(images)
        if images.dtype.kind in "biu":
            raise ValueError(f"images are {images.dtype} pixels; turn each image into a row with `preprocess`")
        images = images.astype(np.float32, copy=False)
        size = self.image_size_px
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images have shape {images.shape}, but this encoder takes [B, {size}, {size}, 3]")
        return self._embed("image", self._jitted_image, self.image_params, self._batches_of(images))

    def embed_pictures(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Returns float32 [B, D], L2-normalised, of pictures of any size.

        Threads read and preprocess the next pictures while the device computes. Pictures are turned upright, as their
        EXIF orientation says, and brought to sRGB first, as in the sets that are mined.

        Args:
            pictures: paths of files (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF) and PIL images.

        Raises:
            TypeError: a picture is neither.
            ValueError: `pictures` is a single picture, or a file is missing or broken; the message names it.
        """
        if isinstance(pictures, str | os.PathLike | Image.Image):
            raise ValueError(f"pictures is the single picture {pictures!r}; give a list of pictures")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                return self._embed("image", self._jitted_image, self.image_params, self._preprocessed(pictures, pool))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def classify(self, pictures: Sequence[Picture], top: int = 5) -> list[list[Prediction]]:
        """Returns for each picture the `top` most probable entities, the most probable first.

        Args:
            pictures: as `embed_pictures` takes them.
            top: how many, from 1; an encoder of fewer classes gives all of them.

        Raises:
            ValueError: this encoder has no classifier, or as `embed_pictures`.
        """
        classifier = self.classifier
        if classifier is None:
            raise ValueError("this encoder has no classifier; give one that was trained on a set with entities")
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        embedded = self.embed_pictures(pictures)
        rows_at_once = max(1, _LOGITS_AT_ONCE // len(classifier.entity_ids))
        return [
            prediction
            for start in range(0, len(embedded), rows_at_once)
            for prediction in _predictions(classifier, embedded[start : start + rows_at_once], top)
        ]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [B, D], L2-normalised; texts longer than the context are truncated.

        Raises:
            ValueError: this encoder has no text tower, or `texts` is a single text.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is the single text {texts!r}; give a list of texts")
        if self._jitted_text is None or self._tokenizer is None:
            raise ValueError("this encoder has no text tower; use one trained with a contrastive or multitask config")
        tokens = np.asarray([encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))], np.int32)
        tokens = tokens.reshape(len(texts), self.context_length or 0)
        return self._embed("text", self._jitted_text, self._text_params, self._batches_of(tokens))

    def _batches_of(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        return (rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size))

    def _preprocessed(self, pictures: Sequence[Picture], pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        """Yields batches float32 [b, S, S, 3]; as many as there are devices are prepared ahead."""

        def preprocessed(position: int) -> np.ndarray:
            return self.preprocess(read_picture(pictures[position], position))

        waiting: deque[list[Future[np.ndarray]]] = deque()
        for start in range(0, len(pictures), self._batch_size):
            batch = range(start, min(start + self._batch_size, len(pictures)))
            waiting.append([pool.submit(preprocessed, position) for position in batch])
            if len(waiting) > len(self._devices):
                yield np.stack([row.result() for row in waiting.popleft()])
        while waiting:
            yield np.stack([row.result() for row in waiting.popleft()])

    def _embed(
        self,
        name: str,
        function: Callable[..., jax.Array],
        params: dict[str, jax.Array],
        batches: Iterable[np.ndarray],
    ) -> np.ndarray:
        """Returns float32 [B, D] of the rows of all batches, of which each but the last has `batch_size` rows."""
        rows = [np.zeros((0, self.embedding_dim), np.float32)]
        running: list[tuple[int, jax.Array]] = []
        for number, chunk in enumerate(batches):
            device = self._devices[number % len(self._devices)]
            if (name, device) not in self._params_on:
                self._params_on[name, device] = jax.device_put(params, device)
            padding = [(0, self._batch_size - len(chunk))] + [(0, 0)] * (chunk.ndim - 1)
            # The call returns at once. Results are awaited only when every device has work.
            batch = jax.device_put(np.pad(chunk, padding), device)
            running.append((len(chunk), function(self._params_on[name, device], batch)))
            if len(running) == len(self._devices):
                rows += [np.asarray(embedded)[:length] for length, embedded in running]
                running = []
        return np.concatenate(rows + [np.asarray(embedded)[:length] for length, embedded in running])


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Returns whether directory `path` holds an encoder whose files match its hash."""
    try:
        read_metadata(os.fspath(path))
    except ValueError:
        return False
    return True


def _predictions(classifier: Classifier, embedded: np.ndarray, top: int) -> Iterator[list[Prediction]]:
    """Yields the predictions for each row of `embedded` [B, D]."""
    logits = classifier.scale * (embedded @ classifier.weights.T)
    logits -= logits.max(axis=1, keepdims=True)
    sums = np.exp(logits).sum(axis=1)
    names = classifier.names or ("",) * len(classifier.entity_ids)
    for of_classes, total in zip(logits, sums, strict=True):
        likely = np.argpartition(-of_classes, top - 1)[:top] if top < len(of_classes) else np.arange(len(of_classes))
        ordered = likely[np.argsort(-of_classes[likely], kind="stable")]
        yield [
            Prediction(classifier.entity_ids[row], names[row], float(np.exp(of_classes[row]) / total))
            for row in ordered.tolist()
        ]


def _read_export(path: str) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    with open(path, "rb") as file:
        return jax.export.deserialize(bytearray(file.read())).call


def _with_prefix(weights: dict[str, np.ndarray], prefix: str) -> dict[str, jax.Array]:
    return {name.removeprefix(prefix): jnp.asarray(v) for name, v in weights.items() if name.startswith(prefix)}


def read_metadata(path: str) -> dict[str, Any]:
    """Returns the content of `encoder.json`; raises ValueError unless the files beside it match its hash."""
    if not os.path.exists(os.path.join(path, METADATA_FILE)):
        raise ValueError(
            f"{path} holds no finished encoder ({METADATA_FILE} is missing); train one there, or name another directory"
        )
    with open(os.path.join(path, METADATA_FILE), encoding="utf-8") as file:
        try:
            metadata: dict[str, Any] = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}/{METADATA_FILE} is not valid JSON ({error}); write the encoder again") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}/{METADATA_FILE} holds a {type(metadata).__name__}, not an object; write it again")
    if metadata.get("format_version") not in READ_VERSIONS:
        raise ValueError(
            f"{path}/{METADATA_FILE} has format_version {metadata.get('format_version')}, but this code reads "
            f"{', '.join(map(str, READ_VERSIONS))}; write the encoder again"
        )
    if content_hash(path, metadata) != metadata.get("hash"):
        raise ValueError(
            f"{path} does not match the hash in {METADATA_FILE}: a file was changed or truncated; "
            "write the encoder again"
        )
    return metadata
