"""The baseline that knows nothing: 16 x 16 RGB pixels, the gallery's mean taken off, compared by cosine."""

from __future__ import annotations

import numpy as np
from PIL import Image

from evaluation.sets.renderings import Renderings
from pipeline.schema import UserError

SIZE_PX = 16
PREPROCESSING = f"rgb on white, bilinear {SIZE_PX}x{SIZE_PX} with antialias, minus the split's mean"


def pixel_vectors(pictures: Renderings) -> np.ndarray:
    """Returns each picture as float32 `[n, 768]` in [0, 1], neither centred nor normalised.

    Raises:
        UserError: a picture cannot be read.
    """
    vectors = np.empty((len(pictures), SIZE_PX * SIZE_PX * 3), np.float32)
    images = pictures.image_set("pixels")
    for position in range(len(pictures)):
        image = images.open(position)[0].resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
        vectors[position] = np.asarray(image, np.float32).reshape(-1) / 255.0
    return vectors


def centred(vectors: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Returns `vectors` minus the mean of the gallery's rows, L2-normalised.

    Args:
        vectors: float32 `[n, dim]`.
        gallery: bool `[n]`, the rows of the gallery, at least one.

    Raises:
        UserError: a row of the gallery equals the mean, so that it has no direction.
    """
    centred_vectors = vectors - vectors[gallery].mean(axis=0)
    norms = np.linalg.norm(centred_vectors, axis=1, keepdims=True)
    blank = np.flatnonzero(gallery & (norms[:, 0] < 1e-6))
    if len(blank):
        raise UserError(f"picture {blank[0]} equals the gallery's mean; a gallery needs 2 different pictures or more")
    unit: np.ndarray = centred_vectors / np.maximum(norms, 1e-6)
    return unit
