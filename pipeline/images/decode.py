"""Encoded pictures to sizes and pixels, whatever the web holds."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image

# Those of `sources.webdataset.IMAGE_SUFFIXES`. Left alone, Pillow tries every format it knows, whatever the file's
# name says: the rare ones fail in their own ways, and one starts Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# A damaged file makes Pillow's decoders raise almost anything.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, AssertionError,
    NotImplementedError, struct.error, zlib.error,
)  # fmt: skip


class ImageTooLarge(ValueError):
    """The picture unpacks to more pixels than Pillow allows, some 179 million."""


def read_size(encoded: bytes) -> tuple[int, int]:
    """Returns the width and height of the picture in pixels, by its header alone.

    Raises:
        ImageTooLarge: the picture has too many pixels.
        ValueError: the bytes are no picture of a known format.
    """
    with _broken_images_told(), Image.open(io.BytesIO(encoded), formats=_FORMATS) as picture:
        return picture.size


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the picture, fully decoded. How large it may be is settled before, by `read_size`.

    Raises:
        ImageTooLarge: the picture has too many pixels.
        ValueError: the bytes are no picture of a known format, or are cut off.
    """
    with _broken_images_told():
        picture = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        picture.load()
    return picture


@contextlib.contextmanager
def _broken_images_told() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on palettes and sizes is nothing a user can act on
            yield
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"broken image: {error}") from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"broken image: {error}") from error
