"""A hash of what a picture shows: pictures that look alike have hashes that differ in few bits."""

from __future__ import annotations

import numpy as np
import scipy.fft
from PIL import Image

from pipeline.images.decode import on_white

_SIDE_PX = 32  # of the picture that is transformed
_SIDE_BITS = 8  # of the square of its lowest frequencies
_ENOUGH_PX = 4 * _SIDE_PX  # larger pictures are reduced by whole numbers first, which takes a fifth of the time


def perceptual_hash(picture: Image.Image) -> str:
    """Returns 64 bits as 16 hexadecimal digits: which of the lowest frequencies are above their median.

    It is the hash `phash` of the package ImageHash, of pictures whose short side has at least 256 pixels that of the
    picture reduced. Transparent pictures are put on white.
    """
    grey = on_white(picture).convert("L")
    factor = min(grey.size) // _ENOUGH_PX
    if factor > 1:
        grey = grey.reduce(factor)
    pixels = np.asarray(grey.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS), np.float64)
    lowest = scipy.fft.dctn(pixels)[:_SIDE_BITS, :_SIDE_BITS]
    ordered = np.sort(lowest, axis=None)
    median = (ordered[31] + ordered[32]) / 2  # of 64 values; np.median takes ten times as long
    bits = lowest > median
    return np.packbits(bits).tobytes().hex()
