"""Writes an encoder to disk, with its functions exported as programs that need no model code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers

from pipeline.storage.disk import write_whole
from trainer.encoder.format import (
    CLASSES_FILE,
    CLASSIFIER_FILE,
    FORMAT_VERSION,
    IMAGE_FILE,
    METADATA_FILE,
    TEXT_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Classifier,
    content_hash,
)
from trainer.encoder.preprocessing import Preprocessing

PLATFORMS = ("cpu", "cuda", "tpu")


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
    """Writes an encoder to directory `path`, which is created if it is missing, and returns the encoder's hash.

    Args:
        path: the directory. The files of an encoder that is already there are replaced.
        image_function: (nested params, float32 [B, S, S, 3]) -> embeddings [B, D]; normalised here.
        image_params: nested dict of arrays.
        preprocessing: what the image function expects of an image.
        text_function: (nested params, int32 [B, context_length]) -> embeddings [B, D]; normalised here.
        text_params: nested dict of arrays.
        tokenizer: with padding and truncation to `context_length` switched on.
        context_length: tokens per text.
        classifier: rows by entity id.
        provenance: JSON values that say what the encoder was trained from. They are kept in `encoder.json` and do not
            affect the hash.

    Raises:
        ValueError: a text function without tokenizer or context length, or a classifier of another width.
        OSError: the files cannot be written; the directory then holds no encoder.
    """
    path = os.fspath(path)
    os.makedirs(path, exist_ok=True)
    for name in (METADATA_FILE, TEXT_FILE, TOKENIZER_FILE, CLASSIFIER_FILE, CLASSES_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(path, name))
    if text_function is not None and (tokenizer is None or context_length is None):
        raise ValueError("a text function needs a tokenizer and a context length")

    flat_image = _flatten(image_params)
    (batch,) = jax.export.symbolic_shape("batch")
    size = preprocessing.image_size_px
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    embedding_dim, exported = _export(image_function, image_params, flat_image, images, vjp_order=1)
    _write(os.path.join(path, IMAGE_FILE), exported)
    weights = {f"image/{name}": value for name, value in flat_image.items()}
    if text_function is not None and tokenizer is not None:
        flat_text = _flatten(text_params)
        tokens = jax.ShapeDtypeStruct((batch, context_length), jnp.int32)
        _, exported = _export(text_function, text_params, flat_text, tokens, vjp_order=0)
        _write(os.path.join(path, TEXT_FILE), exported)
        weights |= {f"text/{name}": value for name, value in flat_text.items()}
        tokenizer.save(os.path.join(path, TOKENIZER_FILE))
    _save_tensors(path, WEIGHTS_FILE, weights)
    if classifier is not None:
        _save_classifier(path, classifier, embedding_dim)
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "image_size_px": size,
        "embedding_dim": embedding_dim,
        "has_text": text_function is not None,
        "context_length": context_length if text_function is not None else None,
        "preprocessing": preprocessing.as_json(),
    }
    metadata["hash"] = encoder_hash = content_hash(path, metadata)
    if provenance is not None:
        metadata["provenance"] = provenance
    write_whole(os.path.join(path, METADATA_FILE), json.dumps(metadata, indent=1).encode())
    return encoder_hash


def l2_normalise(vectors: jax.Array) -> jax.Array:
    """Returns `vectors` [..., D] at length 1; a zero vector stays zero, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors * vectors, axis=-1, keepdims=True), 1e-12))


def _save_classifier(path: str, classifier: Classifier, embedding_dim: int) -> None:
    expected = (len(classifier.entity_ids), embedding_dim)
    if classifier.weights.shape != expected:
        raise ValueError(f"classifier weights have shape {classifier.weights.shape}, expected {expected}")
    if len(classifier.names) not in (0, len(classifier.entity_ids)):
        raise ValueError(f"the classifier has {len(classifier.entity_ids)} entities, but {len(classifier.names)} names")
    norms = np.linalg.norm(classifier.weights, axis=1, keepdims=True)
    tensors = {
        "weights": np.ascontiguousarray(classifier.weights / np.maximum(norms, 1e-12), np.float32),
        "scale": np.asarray(classifier.scale, np.float32),
    }
    _save_tensors(path, CLASSIFIER_FILE, tensors)
    classes = {"entity_ids": list(classifier.entity_ids)}
    if classifier.names:
        classes["names"] = list(classifier.names)
    _write(os.path.join(path, CLASSES_FILE), json.dumps(classes).encode())


def _save_tensors(path: str, name: str, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, os.path.join(path, name))
    # safetensors creates files that only their owner can read.
    shutil.copymode(os.path.join(path, IMAGE_FILE), os.path.join(path, name))


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
    # Precision is part of the export. At the default, float32 would be rounded to bfloat16 on TPU and to TF32 on GPU,
    # and an encoder's embeddings would depend on the platform. On CPU it changes nothing.
    with jax.default_matmul_precision("highest"), _no_source_lines():
        exported = jax.export.export(jax.jit(of_flat), platforms=PLATFORMS)(shapes, inputs)
        return exported.out_avals[0].shape[-1], exported.serialize(vjp_order=vjp_order)


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Keeps file names and line numbers out of an export, so that equal encoders have equal bytes on every machine."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _flatten(params: Any) -> dict[str, np.ndarray]:
    """Returns the arrays by their path, "a/b/c", in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(jax.device_get(value), order="C")
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    }


def _write(path: str, content: bytes | bytearray) -> None:
    with open(path, "wb") as file:
        file.write(content)
