"""The pixels of training pictures: JPEGs are decoded the quick way, all others as an encoder takes them.

The pixels are those of `Preprocessing.pixels`, which evaluation and mining use, but for large JPEGs: with antialias,
one is decoded at a half of its size or less where its short side, so decoded, has at least twice what it is resized to.
On photographs that changes the pixels by half a grey level on average. Without antialias every pixel counts, and the
whole picture is decoded.
"""

from __future__ import annotations

import io
import math
import threading

import numpy as np
import simplejpeg
from PIL import Image

from trainer.encoder import Preprocessing

_JPEG = b"\xff\xd8\xff"
_COLORSPACES = ("YCbCr", "Gray", "RGB")  # CMYK has no one way to RGB; Pillow's counts
_CHANNELS = 3
_DECODED_SIDES = 2  # ours: the short side of a picture that is decoded at a part of its size, in resized ones
_KEPT_BYTES = 64 * 2**20  # ours: of the largest buffer that a thread keeps for its next picture


class _OfThread(threading.local):
    """What a thread keeps between pictures: new memory for each would cost a tenth of the time of decoding."""

    def __init__(self) -> None:
        self.buffer = np.empty(0, np.uint8)


_of_thread = _OfThread()


def training_pixels(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Returns uint8 [S, S, 3] of the bytes of a picture.

    Raises:
        OSError, ValueError, SyntaxError: the picture cannot be read.
    """
    decoded = _decoded(encoded, preprocessing)
    if decoded is not None:
        return preprocessing.pixels(decoded)
    with Image.open(io.BytesIO(encoded)) as picture:
        return preprocessing.pixels(picture)


def _decoded(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray | None:
    """Returns uint8 [height, width, 3], valid until this thread decodes the next picture; None if Pillow must do it."""
    if not encoded.startswith(_JPEG):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None  # Pillow says what is wrong with it
    is_too_large = width * height > (Image.MAX_IMAGE_PIXELS or math.inf)  # Pillow warns of it, or refuses it
    if colorspace not in _COLORSPACES or is_too_large:
        return None
    short_px = preprocessing.resize_px or preprocessing.image_size_px
    smallest = _DECODED_SIDES * short_px if preprocessing.antialias else 0  # 0: not at a part
    needed_bytes = _CHANNELS * width * height
    buffer = _of_thread.buffer
    if needed_bytes > len(buffer):
        buffer = np.empty(needed_bytes, np.uint8)
        if needed_bytes <= _KEPT_BYTES:
            _of_thread.buffer = buffer
    try:
        decoded: np.ndarray = simplejpeg.decode_jpeg(
            encoded, "RGB", buffer=buffer, min_height=smallest, min_width=smallest, min_factor=2 if smallest else 1
        )
    except ValueError:
        return None
    return decoded
