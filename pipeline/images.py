"""Encoded pictures to pixels, whatever the web holds."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image

PIXELS_MAX = 64_000_000  # a picture that unpacks to more is an accident or an attack
# A damaged file makes Pillow's decoders raise almost anything.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, EOFError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the picture, fully decoded.

    Raises:
        ValueError: the bytes are no picture, are cut off, or unpack to more than `PIXELS_MAX` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on palettes and sizes is nothing a user can act on
            picture = Image.open(io.BytesIO(encoded))
            if picture.width * picture.height > PIXELS_MAX:
                raise ValueError(f"{picture.width} x {picture.height} px: more than {PIXELS_MAX:,} pixels")
            picture.load()
    except _DECODER_ERRORS as error:
        raise ValueError(f"broken image: {error}") from error
    return picture
