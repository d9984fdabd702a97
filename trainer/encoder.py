"""Seam 2: an encoder on disk, written and read. Whoever embeds needs this file and no model code.

A directory counts as an encoder once its `encoder.json` is there; it is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from PIL import Image

FORMAT_VERSION = 1
PLATFORMS = ("cpu", "cuda", "tpu")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZES = ("bilinear", "bicubic")
_JSON, _IMAGE, _TEXT, _WEIGHTS = "encoder.json", "image.jaxexport", "text.jaxexport", "weights.safetensors"
_TOKENIZER, _CLASSIFIER, _CLASSES = "tokenizer.json", "classifier.safetensors", "classifier.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a picture of any size to what the image function takes: short side to `image_size_px`, centre crop.

    Equal to torchvision's `Resize(size)` and `CenterCrop(size)` to one grey level: with antialias to what they make of
    a PIL picture, without to what they make of a tensor. A rotation that EXIF data ask for is not applied.
    """

    image_size_px: int
    resize: str = "bilinear"  # or "bicubic"
    antialias: bool = True  # False: only the nearest 2 x 2 or 4 x 4 pixels count, however far a picture shrinks
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize is {self.resize!r}; it must be one of {', '.join(RESIZES)}")

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """Returns uint8 [S, S, 3], the picture on white, resized and cropped."""
        size = self.image_size_px
        picture = on_white(picture)
        short = min(picture.size)
        width, height = (int(size * side / short) for side in picture.size)
        left, top = round((width - size) / 2), round((height - size) / 2)  # half to even, as torchvision's
        if (width, height) != picture.size and not self.antialias:
            rows = _neighbours(picture.height, height, top, size, self.resize)
            columns = _neighbours(picture.width, width, left, size, self.resize)
            return _weighted_sum(np.asarray(picture), rows, columns)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling[self.resize.upper()])
        return np.array(picture.crop((left, top, left + size, top + size)))

    def normalise(self, pixels: Any) -> Any:
        """Returns float32 of the same shape [..., 3], scaled to [0, 1], then by mean and standard deviation."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The entity classifier: `weights` float32 [C, D], rows L2-normalised, in the order of `entity_ids`."""

    weights: np.ndarray
    entity_ids: tuple[str, ...]
    scale: float  # logits = scale * embedding @ weights.T


class Encoder:
    """An image function, and perhaps a text function and a classifier, that share one embedding space."""

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
        self.embedding_dim: int = metadata["embedding_dim"]
        self.image_size_px: int = metadata["image_size_px"]
        self.has_text: bool = metadata["has_text"]
        self.context_length: int | None = metadata["context_length"]
        self.preprocessing = Preprocessing(
            image_size_px=self.image_size_px,
            resize=metadata["preprocessing"]["resize"],
            antialias=metadata["preprocessing"]["antialias"],
            mean=tuple(metadata["preprocessing"]["mean"]),
            std=tuple(metadata["preprocessing"]["std"]),
        )
        self.image_function = image_function  # (flat params, float32 [B, S, S, 3]) -> [B, D]; differentiable once
        self.image_params = image_params
        self.classifier = classifier
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
            batch_size: rows a call of the model; inputs are padded to it, so that a row's embedding does not depend
                on how many rows were embedded with it.
            devices: that share the batches; None: all local ones. A row's embedding does not depend on them either.

        Raises:
            ValueError: there is no encoder, it has another format version, or its files have changed.
        """
        path = os.fspath(path)
        metadata = _read_metadata(path)
        weights = safetensors.numpy.load_file(os.path.join(path, _WEIGHTS))
        has_text = metadata["has_text"]
        classifier = None
        if os.path.exists(os.path.join(path, _CLASSES)):
            tensors = safetensors.numpy.load_file(os.path.join(path, _CLASSIFIER))
            with open(os.path.join(path, _CLASSES), encoding="utf-8") as file:
                entity_ids = tuple(json.load(file)["entity_ids"])
            classifier = Classifier(
                weights=tensors["weights"], entity_ids=entity_ids, scale=float(tensors["scale"].reshape(()))
            )
        return cls(
            metadata=metadata,
            image_function=_read_export(os.path.join(path, _IMAGE)),
            text_function=_read_export(os.path.join(path, _TEXT)) if has_text else None,
            image_params=_with_prefix(weights, "image/"),
            text_params=_with_prefix(weights, "text/"),
            tokenizer=tokenizers.Tokenizer.from_file(os.path.join(path, _TOKENIZER)) if has_text else None,
            classifier=classifier,
            batch_size=batch_size,
            devices=devices,
        )

    @property
    def num_devices(self) -> int:
        """How many batches are embedded at once."""
        return len(self._devices)

    def preprocess(self, picture: Image.Image) -> np.ndarray:
        """Returns float32 [S, S, 3], what `embed_images` takes; transparent pictures are put on white."""
        return self.preprocessing.normalise(self.preprocessing.pixels(picture))

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 [B, D], L2-normalised, of preprocessed float32 [B, S, S, 3].

        Raises:
            ValueError: the images have another shape.
        """
        images = np.asarray(images, np.float32)
        size = self.image_size_px
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images have shape {images.shape}, this encoder takes [B, {size}, {size}, 3]")
        return self._embed("image", self._jitted_image, self.image_params, images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [B, D], L2-normalised; texts longer than the context are cut.

        Raises:
            ValueError: this encoder has no text tower.
        """
        if self._jitted_text is None or self._tokenizer is None:
            raise ValueError("this encoder has no text tower; use one trained with a contrastive or multitask config")
        tokens = np.asarray([encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))], np.int32)
        tokens = tokens.reshape(len(texts), self.context_length or 0)
        return self._embed("text", self._jitted_text, self._text_params, tokens)

    def _embed(
        self, name: str, function: Callable[..., jax.Array], params: dict[str, jax.Array], inputs: np.ndarray
    ) -> np.ndarray:
        rows = [np.zeros((0, self.embedding_dim), np.float32)]
        running: list[tuple[int, jax.Array]] = []
        for number, start in enumerate(range(0, len(inputs), self._batch_size)):
            device = self._devices[number % len(self._devices)]
            if (name, device) not in self._params_on:
                self._params_on[name, device] = jax.device_put(params, device)
            chunk = inputs[start : start + self._batch_size]
            padding = [(0, self._batch_size - len(chunk))] + [(0, 0)] * (inputs.ndim - 1)
            # The call returns at once; waiting for the result is put off until every device has work.
            batch = jax.device_put(np.pad(chunk, padding), device)
            running.append((len(chunk), function(self._params_on[name, device], batch)))
            if len(running) == len(self._devices):
                rows += [np.asarray(embedded)[:length] for length, embedded in running]
                running = []
        return np.concatenate(rows + [np.asarray(embedded)[:length] for length, embedded in running])


def save_encoder(
    path: str | os.PathLike[str],
    *,
    image_function: Callable[[Any, jax.Array], jax.Array],
    image_params: Any,
    preprocessing: Preprocessing,
    text_function: Callable[[Any, jax.Array], jax.Array] | None = None,
    text_params: Any = None,
    tokenizer: tokenizers.Tokenizer | None = None,
    context_length: int | None = None,
    classifier: Classifier | None = None,
    provenance: dict[str, Any] | None = None,
) -> str:
    """Returns the hash of the encoder that it writes to directory `path`, which is made if need be.

    Args:
        path: the directory.
        image_function: (nested params, float32 [B, S, S, 3]) -> embeddings [B, D]; normalised here.
        image_params: nested dict of arrays.
        preprocessing: what the image function expects of a picture.
        text_function: (nested params, int32 [B, context_length]) -> embeddings [B, D]; normalised here.
        text_params: nested dict of arrays.
        tokenizer: with padding and truncation to `context_length` switched on.
        context_length: tokens a text.
        classifier: rows by entity id.
        provenance: what the encoder was made from, as JSON has it; told in `encoder.json`, and no part of the hash.

    Raises:
        ValueError: a text function without tokenizer or context length, or a classifier of another width.
    """
    path = os.fspath(path)
    os.makedirs(path, exist_ok=True)
    for name in (_JSON, _TEXT, _TOKENIZER, _CLASSIFIER, _CLASSES):
        if os.path.exists(os.path.join(path, name)):
            os.remove(os.path.join(path, name))
    has_text = text_function is not None
    if has_text and (tokenizer is None or context_length is None):
        raise ValueError("a text function needs a tokenizer and a context length")

    flat_image = _flatten(image_params)
    (batch,) = jax.export.symbolic_shape("batch")
    size = preprocessing.image_size_px
    pictures = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    embedding_dim, exported = _export(image_function, image_params, flat_image, pictures, vjp_order=1)
    _write(os.path.join(path, _IMAGE), exported)
    weights = {f"image/{name}": value for name, value in flat_image.items()}
    if text_function is not None and tokenizer is not None:
        flat_text = _flatten(text_params)
        tokens = jax.ShapeDtypeStruct((batch, context_length), jnp.int32)
        _, exported = _export(text_function, text_params, flat_text, tokens, vjp_order=0)
        _write(os.path.join(path, _TEXT), exported)
        weights |= {f"text/{name}": value for name, value in flat_text.items()}
        tokenizer.save(os.path.join(path, _TOKENIZER))
    _save_tensors(path, _WEIGHTS, weights)
    if classifier is not None:
        expected = (len(classifier.entity_ids), embedding_dim)
        if classifier.weights.shape != expected:
            raise ValueError(f"classifier weights have shape {classifier.weights.shape}, expected {expected}")
        norms = np.linalg.norm(classifier.weights, axis=1, keepdims=True)
        tensors = {
            "weights": np.ascontiguousarray(classifier.weights / np.maximum(norms, 1e-12), np.float32),
            "scale": np.asarray(classifier.scale, np.float32),
        }
        _save_tensors(path, _CLASSIFIER, tensors)
        _write(os.path.join(path, _CLASSES), json.dumps({"entity_ids": list(classifier.entity_ids)}).encode())
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "image_size_px": size,
        "embedding_dim": embedding_dim,
        "has_text": has_text,
        "context_length": context_length if has_text else None,
        "preprocessing": {
            "resize": preprocessing.resize,
            "antialias": preprocessing.antialias,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }
    metadata["hash"] = _hash(path, metadata)
    if provenance is not None:
        metadata["provenance"] = provenance
    _write(os.path.join(path, _JSON + ".part"), json.dumps(metadata, indent=1).encode())
    os.replace(os.path.join(path, _JSON + ".part"), os.path.join(path, _JSON))
    return metadata["hash"]


def _save_tensors(path: str, name: str, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, os.path.join(path, name))
    # It makes files that nobody but their owner may read.
    shutil.copymode(os.path.join(path, _IMAGE), os.path.join(path, name))


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Returns whether directory `path` holds an encoder that is as it was written."""
    try:
        _read_metadata(os.fspath(path))
    except ValueError:
        return False
    return True


def on_white(picture: Image.Image) -> Image.Image:
    """Returns the picture as RGB; what is transparent becomes white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def l2_normalise(vectors: jax.Array) -> jax.Array:
    """Returns `vectors` [..., D] at length 1; a zero vector stays zero, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors * vectors, axis=-1, keepdims=True), 1e-12))


def _export(
    function: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    flat: dict[str, np.ndarray],
    inputs: Any,
    *,
    vjp_order: int,
) -> tuple[int, bytearray]:
    """Returns D and the export of `function` as (flat params, inputs) -> normalised embeddings [B, D]."""
    structure, names = jax.tree.structure(params), list(flat)

    def of_flat(flat: dict[str, jax.Array], values: jax.Array) -> jax.Array:
        nested = jax.tree.unflatten(structure, [flat[name] for name in names])
        return l2_normalise(function(nested, values).astype(jnp.float32))

    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in flat.items()}
    # Precision is part of the export: at the default, float32 would be rounded to bfloat16 on TPU and to TF32 on GPU,
    # and one encoder would embed differently on each. On CPU it changes nothing.
    with jax.default_matmul_precision("highest"), _no_source_lines():
        exported = jax.export.export(jax.jit(of_flat), platforms=PLATFORMS)(shapes, inputs)
        return exported.out_avals[0].shape[-1], exported.serialize(vjp_order=vjp_order)


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Keeps paths and lines of the code out of an export: equal encoders have equal bytes, wherever they are made."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _read_export(path: str) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    with open(path, "rb") as file:
        return jax.export.deserialize(bytearray(file.read())).call


def _flatten(params: Any) -> dict[str, np.ndarray]:
    """Returns the arrays by their path, "a/b/c", in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(jax.device_get(value), order="C")
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    }


def _with_prefix(weights: dict[str, np.ndarray], prefix: str) -> dict[str, jax.Array]:
    return {name.removeprefix(prefix): jnp.asarray(v) for name, v in weights.items() if name.startswith(prefix)}


def _read_metadata(path: str) -> dict[str, Any]:
    """Returns what `encoder.json` says; raises ValueError unless the files beside it are those it was written with."""
    if not os.path.exists(os.path.join(path, _JSON)):
        raise ValueError(f"{path} holds no finished encoder ({_JSON} is missing); train or import one there")
    with open(os.path.join(path, _JSON), encoding="utf-8") as file:
        try:
            metadata = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} has an {_JSON} that is no JSON ({error}); write the encoder again") from None
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has encoder format version {metadata.get('format_version')}, this code reads "
            f"{FORMAT_VERSION}; export it again"
        )
    if _hash(path, metadata) != metadata.get("hash"):
        raise ValueError(f"{path} does not match the hash in {_JSON}: a file changed or is cut short; write it again")
    return metadata


def _hash(path: str, metadata: dict[str, Any]) -> str:
    stated = {key: value for key, value in metadata.items() if key not in ("hash", "provenance")}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in (_IMAGE, _TEXT, _WEIGHTS, _TOKENIZER, _CLASSIFIER, _CLASSES):
        if os.path.exists(os.path.join(path, name)):
            with open(os.path.join(path, name), "rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write(path: str, content: bytes | bytearray) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _neighbours(old: int, new: int, first: int, count: int, resize: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns which old pixels make the new ones from `first` on, int [count, 2 or 4], and their weights, float32."""
    centres = (np.arange(first, first + count) + 0.5) * old / new - 0.5
    if resize == "bilinear":
        centres = np.clip(centres, 0, old - 1)
    low = np.floor(centres).astype(int)
    offsets = np.arange(2) if resize == "bilinear" else np.arange(-1, 3)
    distances = np.abs(low[:, None] + offsets - centres[:, None])
    if resize == "bilinear":
        weights = 1 - distances
    else:
        # Keys' kernel with torch's coefficient, -0.75; with antialias both Pillow and torch have -0.5.
        near = 1.25 * distances**3 - 2.25 * distances**2 + 1
        far = -0.75 * (distances**3 - 5 * distances**2 + 8 * distances - 4)
        weights = np.where(distances <= 1, near, far)
    return np.clip(low[:, None] + offsets, 0, old - 1), weights.astype(np.float32)


def _weighted_sum(
    pixels: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Returns uint8 [rows, columns, 3]; reads only the pixels that count, so that a large picture costs little more."""
    (row_of, row_weight), (column_of, column_weight) = rows, columns
    # Takes of whole rows, then of columns, are several times faster than one index of both.
    value_weight = np.repeat(column_weight, 3, axis=0)
    total = np.zeros((len(row_of), len(value_weight)), np.float32)
    for i in range(row_of.shape[1]):
        of_rows = pixels.take(row_of[:, i], axis=0)
        across = np.zeros_like(total)
        for j in range(column_of.shape[1]):
            across += of_rows.take(column_of[:, j], axis=1).reshape(total.shape) * value_weight[:, j]
        total += across * row_weight[:, i, None]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8).reshape(len(row_of), len(column_of), 3)
