"""Pictures as a set stores them: JPEG or PNG, upright, in sRGB, without metadata.

What is so already keeps its bytes. Where only metadata is in the way, it is cut out and the pixels' bytes stay.
Anything else is decoded and encoded again: as PNG if it is transparent or its file lost nothing (PNG, GIF, BMP, TIFF,
lossless WebP), else as JPEG of quality 95.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from pipeline.images.decode import (
    WEB_FORMATS,
    decode_image,
    needs_srgb,
    orientation_of,
    pillow_is_quiet,
    reporting_broken_images,
)

JPEG_QUALITY = 95  # this project's choice: no difference that an eye sees
_PNG_BIT_DEPTH = 24  # position of the byte in the file
# What neither says anything of the picture's origin nor changes how decoders show it; all others are cut out.
_PNG_CHUNKS = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD", b"hIST", b"pHYs"}
)
_START_OF_SCAN, _END_OF_IMAGE, _COMMENT = 0xDA, 0xD9, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive: with 8 bits, what every decoder reads
_TABLES = frozenset({0xC4, 0xDB, 0xDD})  # Huffman tables, quantisation tables, restart interval
_WITHOUT_LENGTH = frozenset({0x01, _END_OF_IMAGE, *range(0xD0, 0xD9)})
_FRAME = struct.Struct(">BHHB")  # bits a colour, height, width, colours
_PLAIN_PIXELS_MAX = 1 << 24  # a choice of ours; of larger pictures Pillow says whether they are too large
# Within a scan, FF is followed by a zero, by a restart mark, or by FF, unless a segment begins.
_SEGMENT_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class StoredImage(NamedTuple):
    """An encoded picture and its size."""

    encoded: bytes
    width_px: int
    height_px: int


def stored_image(encoded: bytes, *, max_side_px: int | None = None) -> StoredImage:
    """Returns the picture as a set stores it, and its size.

    Pictures that keep their bytes are not decoded: that they can be was found out before, by `decode_image`. Most are
    JPEGs that are known by their markers to need no change; for them Pillow is not asked, which would take most of the
    time.

    Args:
        encoded: the picture's file, of one of `WEB_FORMATS`.
        max_side_px: longer sides are reduced to this length, and the other in proportion; None: no limit.

    Raises:
        ValueError: the picture is broken, or has too many pixels.
    """
    plain_size = _size_of_plain_jpeg(encoded)
    if plain_size is not None and (max_side_px is None or max(plain_size) <= max_side_px):
        return StoredImage(encoded, *plain_size)
    with pillow_is_quiet(), reporting_broken_images(WEB_FORMATS):
        with Image.open(io.BytesIO(encoded), formats=WEB_FORMATS) as picture:
            width_px, height_px = picture.size
            is_small = max_side_px is None or max(width_px, height_px) <= max_side_px
            if is_small and _keeps_pixels(picture, encoded):
                stripped = without_metadata(encoded)
                if stripped is not None:
                    return StoredImage(stripped, width_px, height_px)
            is_lossless = picture.format in ("PNG", "GIF", "BMP", "TIFF") or encoded[12:16] == b"VP8L"
    decoded = decode_image(encoded)
    if max_side_px is not None and max(decoded.size) > max_side_px:
        decoded = _reduced(decoded, max_side_px)
    return StoredImage(_encode(decoded, is_lossless=is_lossless), *decoded.size)


def without_metadata(encoded: bytes) -> bytes | None:
    """Returns the JPEG or PNG file without its metadata and without what follows its end; pixels stay as they are.

    A file that has neither is returned as it is; None stands for one that is not made as the formats demand.
    """
    try:
        stripped = _png_without_metadata(encoded) if encoded.startswith(b"\x89PNG") else _jpeg_without_metadata(encoded)
    except (IndexError, ValueError):
        return None
    return encoded if len(stripped) == len(encoded) else stripped


def _keeps_pixels(picture: Image.Image, encoded: bytes) -> bool:
    if needs_srgb(picture) or orientation_of(picture, encoded) != 1:
        return False
    if picture.format == "PNG":
        return encoded[_PNG_BIT_DEPTH] <= 8 and not getattr(picture, "is_animated", False)
    return picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB")


def _reduced(picture: Image.Image, side_px: int) -> Image.Image:
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    ratio = side_px / max(picture.size)
    size = tuple(max(1, round(ratio * side)) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _encode(picture: Image.Image, *, is_lossless: bool) -> bytes:
    transparency = picture.info.get("transparency")
    has_alpha = picture.mode in ("LA", "PA", "RGBA")
    if has_alpha and picture.getchannel("A").getextrema() == (255, 255):
        has_alpha, picture = False, picture.convert("L" if picture.mode == "LA" else "RGB")
    picture = picture.convert("RGBA") if picture.mode == "PA" else picture.copy()
    picture.info = {} if transparency is None else {"transparency": transparency}  # Pillow would write all of it
    buffer = io.BytesIO()
    if is_lossless or has_alpha or transparency is not None:
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _png_without_metadata(encoded: bytes) -> bytes:
    """Returns the PNG file with the chunks of `_PNG_CHUNKS` alone.

    Raises:
        ValueError: it ends before its last chunk.
    """
    parts, position, name = [encoded[:8]], 8, b""
    while name != b"IEND":
        name = encoded[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(encoded[position : position + 4], "big")
        if end > len(encoded):
            raise ValueError("the file ends within a chunk")
        if name in _PNG_CHUNKS:
            parts.append(encoded[position:end])
        position = end
    return b"".join(parts)


def _jpeg_without_metadata(encoded: bytes) -> bytes:
    """Returns the JPEG file without comments and application segments, but for those that say how colours are coded.

    Raises:
        IndexError, ValueError: see `_jpeg_segments`.
    """
    parts = [encoded[:2]]
    for marker, start, end in _jpeg_segments(encoded):
        if not _is_metadata(marker, encoded[start + 4 : start + 9]):
            parts.append(encoded[start:end])
    return b"".join(parts)


def _size_of_plain_jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Returns width and height in pixels of a JPEG in which nothing but its pixels is coded; None for all else.

    It is grey or has three colours of 8 bits each, and neither profile nor orientation nor any other metadata, nor
    does anything follow its end: all that it has is a frame, tables, scans, and the segment of JFIF.
    """
    size, before = None, 2
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    try:
        for marker, start, end in _jpeg_segments(encoded):
            if start != before:
                return None  # bytes to fill up, which are cut out
            before = end
            if marker in _FRAMES:
                bits, height_px, width_px, num_colours = _FRAME.unpack_from(encoded, start + 4)
                if size is not None or bits != 8 or num_colours not in (1, 3):
                    return None
                size = width_px, height_px
            elif marker == _APP0:
                if not encoded.startswith(b"JFIF\0", start + 4):
                    return None
            elif marker not in _TABLES and marker not in (_START_OF_SCAN, _END_OF_IMAGE):
                return None
    except (IndexError, ValueError, struct.error):
        return None
    if size is None or before != len(encoded) or not 0 < size[0] * size[1] <= _PLAIN_PIXELS_MAX:
        return None
    return size


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of each segment, a scan with what it codes; the last is the end mark.

    Raises:
        IndexError: the file ends before its end mark.
        ValueError: a segment does not begin where the one before it ends.
    """
    position, marker = 2, 0
    while marker != _END_OF_IMAGE:
        if encoded[position] != 0xFF:
            raise ValueError("no marker where one is due")
        marker = encoded[position + 1]
        if marker == 0xFF:  # a byte to fill up
            position += 1
            continue
        end = position + 2
        if marker not in _WITHOUT_LENGTH:
            end += int.from_bytes(encoded[end : end + 2], "big")
        if end > len(encoded):
            raise IndexError("the file ends within a segment")
        if marker == _START_OF_SCAN:
            segment = _SEGMENT_IN_SCAN.search(encoded, end)
            if segment is None:
                raise IndexError("the file ends within a scan")
            end = segment.start()
        yield marker, position, end
        position = end


def _is_metadata(marker: int, begin: bytes) -> bool:
    if marker == _APP0:
        return begin != b"JFIF\0"
    if marker == _APP14:
        return begin != b"Adobe"
    return marker == _COMMENT or _APP0 <= marker <= _APP15
