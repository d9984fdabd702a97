"""Encoded pictures to sizes and pixels: one rule for every mode that Pillow knows.

Pictures with 8 bits per channel or fewer are taken as they are. Deep ones are greyscale in Pillow, and `convert` would
clip them at 255, so they are scaled here, by the range that their file states:

- Unsigned integers of up to 16 bits cover 0 to 2^bits - 1.
- In a TIFF file, the tags SMinSampleValue and SMaxSampleValue, or else MinSampleValue and MaxSampleValue, come first.
- Floats without such tags cover 0 to 1, if all of them lie in it.
- Anything else (32-bit or signed integers, other floats) states no range and is refused, as are values outside a
  stated range.

The miner sees pictures as a browser shows them: `decode_image` turns them upright, as their orientation says, and
brings them to sRGB by their colour profile; CMYK without a profile is converted as Pillow does. Of several frames or
pages the first counts. Evaluation follows published protocols, and takes pictures as `open_picture` returns them.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from pipeline.byte_cache import Remembered

# Those of `sources.member_rules.IMAGE_SUFFIXES`. Left alone, Pillow tries every format it knows, whatever the file's
# name says: the rare ones fail in their own ways, and one starts Ghostscript.
WEB_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# A damaged file makes Pillow's decoders raise almost anything.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, AssertionError,
    NotImplementedError, struct.error, zlib.error,
)  # fmt: skip
_DEEP_INTEGERS = ("I;16", "I;16L", "I;16B", "I;16N")  # unsigned, up to 16 bits
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
_STATED_RANGES = ((340, 341), (280, 281))  # tags of TIFF: lowest and highest value; the first pair that is there counts
_CACHE_BYTES = 64 << 20  # of colour profiles, those of printers have megabytes, and as much of what converts by them
_ENTRY_BYTES = 200  # of an entry beside its profile
_TRANSFORM_BYTES = 2 << 20  # of what converts, at most: a table of 23 x 23 x 23 x 23 colours for CMYK

# Warnings of libjpeg that tell of missing data; up to 9 bytes that belong to nothing are only sloppily written.
_MISSING_DATA = re.compile(r"Premature end|Corrupt JPEG data(?!: \d extraneous bytes)")
_ORIENTATION = 274  # tag of EXIF
# One of these is in every PNG that states an orientation. Asked for it, Pillow decodes the picture, for the marks that
# may follow it.
_PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_TURNS = {  # what makes a picture of an orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageTooLarge(ValueError):
    """The picture has more pixels than Pillow allows, some 179 million."""


class UnknownRange(ValueError):
    """Nothing states which values of a deep picture are black and white, or its values contradict what is stated."""


class Header(NamedTuple):
    """What a picture's file says of it before its pixels."""

    width_px: int
    """Of the upright picture, as is the height."""
    height_px: int
    format: str
    """As Pillow names it, such as "JPEG"."""


def read_header(encoded: bytes) -> Header:
    """Returns size and format of the picture, by its header alone.

    Raises:
        ImageTooLarge: the picture has too many pixels.
        ValueError: the bytes are not a picture of a format of the web.
    """
    with pillow_is_quiet(), reporting_broken_images(WEB_FORMATS):
        with Image.open(io.BytesIO(encoded), formats=WEB_FORMATS) as picture:
            width_px, height_px = picture.size
            if orientation_of(picture, encoded) >= 5:
                width_px, height_px = height_px, width_px
            return Header(width_px, height_px, picture.format or "")


def decode_image(encoded: bytes) -> Image.Image:
    """Returns the picture of a format of the web, fully decoded, upright, in sRGB, with 8 bits per channel or fewer.

    How large it may be is settled before, by `read_header`.

    Raises:
        ImageTooLarge: the picture has too many pixels.
        ValueError: the bytes are not a picture of a format of the web, or are cut off.
    """
    with pillow_is_quiet(), reporting_broken_images(WEB_FORMATS):
        picture = Image.open(io.BytesIO(encoded), formats=WEB_FORMATS)
        picture.load()
        if picture.format in ("JPEG", "MPO"):
            _check_whole(encoded, picture.mode)
        turn = _TURNS.get(orientation_of(picture, encoded))
        shallow = to_8_bits(picture)
        return to_srgb(shallow if turn is None else shallow.transpose(turn))


def _check_whole(encoded: bytes, mode: str) -> None:
    """Checks that a JPEG has all of its data.

    Where some is missing, Pillow's decoder fills the picture with grey, and keeps the warning to itself. This one
    reports it. In grey, at an eighth of the size, that takes two thirds of the time of decoding.

    Raises:
        ValueError: data is missing, or there is some that belongs to no part of the picture.
    """
    import simplejpeg  # not at the top: evaluation reads this module too, and does not decode by it

    colours = "CMYK" if mode == "CMYK" else "GRAY"
    try:
        simplejpeg.decode_jpeg(encoded, colorspace=colours, min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        if _MISSING_DATA.match(str(error)):
            raise


def orientation_of(picture: Image.Image, encoded: bytes) -> int:
    """Returns how the picture's file says that it was turned, as EXIF counts: 1 is upright, from 5 on it lies.

    Args:
        picture: opened from `encoded`; it need not be decoded.
        encoded: the bytes of the file.
    """
    if picture.format == "TIFF":  # Pillow turns these itself
        return 1
    if picture.format == "PNG" and not any(mark in encoded for mark in _PNG_METADATA):
        return 1
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:  # a damaged remark does not make the picture one
        return 1
    return orientation if orientation in _TURNS else 1


def to_srgb(picture: Image.Image) -> Image.Image:
    """Returns the picture in sRGB: converted by its colour profile, if it has one that is readable and another.

    Profiles of greyscale pictures are not used.
    """
    if not needs_srgb(picture):
        return picture
    profile = picture.info.get("icc_profile")
    has_alpha = picture.mode == "RGBA" or "transparency" in picture.info
    coloured = picture if picture.mode == "CMYK" else picture.convert("RGBA" if has_alpha else "RGB")
    if profile:
        try:
            transform = _transforms[profile, coloured.mode]
            converted = ImageCms.applyTransform(coloured, transform)
            assert converted is not None  # it is not converted in place
            return converted
        except (ImageCms.PyCMSError, *_DECODER_ERRORS):
            pass  # a profile that cannot be used counts as none
    return coloured.convert("RGB") if coloured.mode == "CMYK" else coloured


def needs_srgb(picture: Image.Image) -> bool:
    """Returns whether `to_srgb` has something to convert."""
    profile = picture.info.get("icc_profile")
    if picture.mode not in ("RGB", "RGBA", "P") or not profile:
        return picture.mode == "CMYK"
    return not _says_srgb[profile]


def _is_srgb(profile: bytes) -> bool:
    try:
        return "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, *_DECODER_ERRORS):
        return True  # nothing can be converted by it


def _transform(of: tuple[bytes, str]) -> ImageCms.ImageCmsTransform:
    """Returns what brings a picture of (colour profile, mode) to sRGB."""
    profile, mode = of
    target = "RGBA" if mode == "RGBA" else "RGB"
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, target)


_says_srgb = Remembered(_is_srgb, _CACHE_BYTES, lambda profile, _: len(profile) + _ENTRY_BYTES)
_transforms = Remembered(_transform, _CACHE_BYTES, lambda of, _: len(of[0]) + _TRANSFORM_BYTES)


def open_picture(encoded: bytes, formats: Sequence[str]) -> Image.Image:
    """Returns the picture, fully decoded, with 8 bits per channel or fewer; of several frames or pages the first.

    Args:
        encoded: the bytes of a file.
        formats: Pillow's names of those that are tried, such as "PNG".

    Raises:
        ImageTooLarge: the picture has too many pixels.
        UnknownRange: see `to_8_bits`.
        ValueError: the bytes are not a picture of one of the formats, or are cut off.
    """
    with reporting_broken_images(formats):
        picture = Image.open(io.BytesIO(encoded), formats=tuple(formats))
        picture.load()
        return to_8_bits(picture)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Returns the picture as RGB. Transparency is dropped: what lies under it shows.

    Raises:
        UnknownRange: see `to_8_bits`.
    """
    shallow = to_8_bits(picture)
    if isinstance(shallow.info.get("transparency"), bytes):  # of a palette: Pillow would warn that it is dropped
        shallow = shallow.convert("RGBA")
    rgb = shallow.convert("RGB")
    rgb.info.pop("transparency", None)  # the colour that stood for transparent is a colour like any other
    return rgb


def on_white(picture: Image.Image) -> Image.Image:
    """Returns the picture as RGB; what is transparent becomes white.

    Raises:
        UnknownRange: see `to_8_bits`.
    """
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    rgba = to_8_bits(picture).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def to_8_bits(picture: Image.Image) -> Image.Image:
    """Returns a deep greyscale picture as 8-bit greyscale, scaled as this module states; others as they are.

    Raises:
        UnknownRange: no range is stated, or a value lies outside it.
    """
    if picture.mode not in (*_DEEP_INTEGERS, "I", "F"):
        return picture
    values = np.asarray(picture)
    low, high = _range_of(picture, values)
    grey = scaled_to_8_bits(values, low, high)
    tags = getattr(picture, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts shallow pictures only
        grey = 255 - grey
    scaled = Image.fromarray(grey)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):  # a grey level before scaling; others may become equal to it
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        scaled.putalpha(Image.fromarray(alpha))
    return scaled


def scaled_to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns uint8 of the shape of `values`: 0 for `low`, 255 for `high`, linear between, rounded to nearest.

    Raises:
        UnknownRange: a value is outside `low` to `high`, or not a number.
    """
    lowest, highest = values.min(), values.max()
    if not (low <= lowest and highest <= high):
        raise UnknownRange(
            f"its values are from {lowest} to {highest}, and its range is from {low:g} to {high:g}; "
            "save it with 8 or 16 bits"
        )
    # In float64: its rounding errors are far smaller than the distance of a 16-bit value to the middle of two levels.
    return np.floor((values.astype(np.float64) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def range_of_dtype(values: np.ndarray) -> tuple[float, float]:
    """Returns black and white of an array that states nothing but its type: unsigned integers to 16 bits, bool, floats.

    Raises:
        UnknownRange: its type states no range, or floats lie outside 0 to 1.
    """
    if values.dtype == np.bool_:
        return 0, 1
    if values.dtype in (np.uint8, np.uint16):
        return 0, int(np.iinfo(values.dtype).max)
    if np.issubdtype(values.dtype, np.floating) and values.min() >= 0 and values.max() <= 1:
        return 0, 1
    what = "floats outside 0 to 1" if np.issubdtype(values.dtype, np.floating) else f"of type {values.dtype}"
    raise UnknownRange(
        f"its values are {what}, from {values.min()} to {values.max()}, and nothing states which are black and white; "
        "save it with 8 or 16 bits"
    )


def _range_of(picture: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Returns the values of black and white (or white and black) of a deep greyscale picture."""
    tags = getattr(picture, "tag_v2", {})
    for lowest_tag, highest_tag in _STATED_RANGES:
        highest = _number(tags.get(highest_tag))
        lowest = _number(tags.get(lowest_tag)) or 0.0  # 0 where the tag is missing
        if highest is not None and highest > lowest:
            return lowest, highest
    if picture.mode in _DEEP_INTEGERS:
        bits = _number(tags.get(_BITS_PER_SAMPLE)) or 16
        return 0, 2 ** int(bits) - 1
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):
        return 0, 65535  # Pillow scales PPM to it
    return range_of_dtype(values)


def _number(tag: object) -> float | None:
    """Returns the value of a TIFF tag of one channel."""
    first = tag[0] if isinstance(tag, tuple) and tag else tag
    return None if first is None else float(first)  # type: ignore[arg-type]  # Pillow's rationals are numbers


@contextlib.contextmanager
def pillow_is_quiet() -> Iterator[None]:
    """Silences Pillow's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's advice on palettes and sizes is nothing a user can act on
        yield


@contextlib.contextmanager
def reporting_broken_images(formats: Sequence[str]) -> Iterator[None]:
    """Turns what Pillow raises of a damaged file into a ValueError, which names the `formats` that were tried."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"broken image: {error}") from error
    except UnknownRange:
        raise
    except UnidentifiedImageError as error:  # Pillow's words would hold an address
        raise ValueError(f"broken image: not a picture of the formats {', '.join(formats)}") from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"broken image: {error}") from error
