"""The files of an encoder's directory, shared by its reader and its writer.

A directory counts as an encoder once it holds `encoder.json`, which is written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

FORMAT_VERSION = 3
# Preprocessing of 1 lacks resize_px, fit, alpha and crop_start, and of 1 and 2 round_pixels; all have defaults.
READ_VERSIONS = (1, 2, 3)
METADATA_FILE = "encoder.json"
IMAGE_FILE, TEXT_FILE = "image.jaxexport", "text.jaxexport"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
CLASSIFIER_FILE, CLASSES_FILE = "classifier.safetensors", "classifier.json"
HASHED_FILES = (IMAGE_FILE, TEXT_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CLASSIFIER_FILE, CLASSES_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The entity classifier: `weights` float32 [C, D], rows L2-normalised, in the order of `entity_ids`."""

    weights: np.ndarray
    entity_ids: tuple[str, ...]
    scale: float  # logits = scale * embedding @ weights.T
    names: tuple[str, ...] = ()  # of the entities, as many, or none


def content_hash(path: str, metadata: dict[str, Any]) -> str:
    """Returns the hash of the metadata, without hash and provenance, and of the files in directory `path`."""
    stated = {key: value for key, value in metadata.items() if key not in ("hash", "provenance")}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name in HASHED_FILES:
        if os.path.exists(os.path.join(path, name)):
            with open(os.path.join(path, name), "rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
