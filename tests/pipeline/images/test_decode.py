"""Encoded pictures to sizes and pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from pipeline.images.decode import (
    UnknownRange,
    decode_image,
    on_white,
    open_picture,
    range_of_dtype,
    read_header,
    to_rgb,
)
from tests.fakes import ODD_PICTURES, png


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:40], png(1)[:-30], *ODD_PICTURES])
def test_what_is_no_whole_picture_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        decode_image(data)


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:20], *ODD_PICTURES])
def test_what_has_no_readable_header_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        read_header(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_formats_of_the_web_are_read(name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30)).save(buffer, name)
    assert read_header(buffer.getvalue()) == (20, 30, name)
    assert decode_image(buffer.getvalue()).size == (20, 30)


def encoded(picture: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return open_picture(data, ("PNG", "TIFF", "PPM", "GIF", "JPEG", "WEBP"))


def tags(**values: float) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Tags of TIFF by number, such as t281=4095; floats as DOUBLE."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in values.items():
        number = int(name[1:])
        if isinstance(value, float):
            directory.tagtype[number] = 12
        directory[number] = value
    return directory


# 16 bits to 8 is v / 257: 128 / 257 = 0.498 and 129 / 257 = 0.502, 32768 / 257 = 127.502, 65406 / 257 = 254.498.
DEEP = np.array([[0, 128, 129, 257, 32768, 65406, 65535]], np.uint16)
SHALLOW = [0, 0, 1, 1, 128, 254, 255]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(DEEP), "PNG"),
        encoded(Image.fromarray(DEEP), "TIFF"),
        encoded(Image.frombytes("I;16B", (7, 1), DEEP.astype(">u2").tobytes()), "TIFF"),
        b"P5 7 1 65535\n" + DEEP.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "big-endian tiff", "pgm"],
)
def test_16_bit_greyscale_is_scaled_to_8_bits_and_not_clipped(data: bytes) -> None:
    for convert in (to_rgb, on_white):
        assert np.asarray(convert(opened(data)))[0].tolist() == [[level] * 3 for level in SHALLOW]


def test_the_miner_reads_16_bit_greyscale_as_8_bits() -> None:
    picture = decode_image(encoded(Image.fromarray(DEEP), "PNG"))
    assert picture.mode == "L" and np.asarray(picture)[0].tolist() == SHALLOW


def test_a_deep_picture_that_pillow_opened_is_scaled_by_the_converters_too() -> None:
    with Image.open(io.BytesIO(encoded(Image.fromarray(DEEP), "PNG"))) as picture:
        assert picture.mode == "I;16"
        assert np.asarray(on_white(picture))[0, :, 0].tolist() == SHALLOW


def test_a_grey_level_that_stands_for_transparent_is_compared_before_scaling() -> None:
    data = encoded(Image.fromarray(np.array([[128, 127, 0]], np.uint16)), "PNG", transparency=128)
    # All three levels are 0 in 8 bits; only the first is transparent.
    assert np.asarray(on_white(opened(data)))[0, :, 0].tolist() == [255, 0, 0]
    assert np.asarray(to_rgb(opened(data)))[0, :, 0].tolist() == [0, 0, 0]


def test_the_tags_of_a_tiff_file_state_the_range() -> None:
    values = Image.fromarray(np.array([[1000, 2000, 3000]], np.uint16))
    # From 1,000 to 3,000: 2,000 is half-way, 127.5, which rounds up.
    stated = encoded(values, "TIFF", tiffinfo=tags(t280=1000, t281=3000))
    assert np.asarray(opened(stated))[0].tolist() == [0, 128, 255]
    # SMaxSampleValue counts before MaxSampleValue: 1,000 / 5,000 * 255 = 51.
    both = encoded(values, "TIFF", tiffinfo=tags(t281=3000, t341=5000.0))
    assert np.asarray(opened(both))[0].tolist() == [51, 102, 153]
    floats = Image.fromarray(np.array([[-1, 0, 1]], np.float32))
    stated = encoded(floats, "TIFF", tiffinfo=tags(t340=-1.0, t341=1.0))
    assert np.asarray(opened(stated))[0].tolist() == [0, 128, 255]


def test_where_white_is_zero_a_deep_picture_is_inverted() -> None:
    data = encoded(Image.fromarray(DEEP), "TIFF")
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, value) for value in (1, 0))
    assert black_is_zero in data
    data = data.replace(black_is_zero, white_is_zero)
    assert np.asarray(opened(data))[0].tolist() == [255 - level for level in SHALLOW]


def test_floats_from_0_to_1_are_scaled_and_others_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0, 0.25, 1]], np.float32)), "TIFF")
    assert np.asarray(opened(data))[0].tolist() == [0, 64, 255]  # 63.75
    for values in ([0, 255], [-0.5, 1], [np.nan, 1]):
        data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        with pytest.raises(UnknownRange, match="its values are floats outside 0 to 1, .* save it with 8 or 16 bits"):
            opened(data)


def test_32_bit_integers_are_refused_unless_their_range_is_stated() -> None:
    values = Image.fromarray(np.array([[0, 5, 10]], np.int32))
    with pytest.raises(UnknownRange, match="of type int32, from 0 to 10, and nothing states which are black and white"):
        opened(encoded(values, "TIFF"))
    assert np.asarray(opened(encoded(values, "TIFF", tiffinfo=tags(t341=10.0))))[0].tolist() == [0, 128, 255]


def test_a_value_outside_the_stated_range_is_refused() -> None:
    data = encoded(Image.fromarray(DEEP), "TIFF", tiffinfo=tags(t281=4095))
    with pytest.raises(UnknownRange, match="values are from 0 to 65535, and its range is from 0 to 4095"):
        opened(data)


def test_12_bit_tiff_covers_4095() -> None:
    # Two values of 12 bits in three bytes: 0xFFF and 0x800. 2048 / 4095 * 255 = 127.53.
    header = b"II*\0\x08\0\0\0"
    entries = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, 1),
        (279, 3),
    ]
    directory = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    data = header + directory + bytes(4) + bytes([0xFF, 0xF8, 0x00])
    assert np.asarray(opened(data))[0].tolist() == [255, 128]


def test_arrays_without_a_file_have_the_range_of_their_type() -> None:
    assert range_of_dtype(np.array([False, True])) == (0, 1)
    assert range_of_dtype(np.array([3], np.uint8)) == (0, 255)
    assert range_of_dtype(np.array([3], np.uint16)) == (0, 65535)
    assert range_of_dtype(np.array([0.5, 1.0], np.float64)) == (0, 1)
    for values in (np.array([3], np.int64), np.array([1.5], np.float32), np.array([-1], np.int16)):
        with pytest.raises(UnknownRange, match="nothing states which are black and white"):
            range_of_dtype(values)


RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def palette_with_transparency() -> bytes:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((0, 0), 0)
    return encoded(picture, "PNG", transparency=0)


def two_frames() -> bytes:
    return encoded(Image.new("RGB", (2, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 1), BLUE)])


@pytest.mark.parametrize(
    ("data", "white", "plain"),
    [
        (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), [RED, RED], [RED, RED]),
        (palette_with_transparency(), [WHITE, BLUE], [RED, BLUE]),
        # Half of 100 on white: (100 * 128 + 255 * 127) / 255 = 177.2.
        (encoded(Image.new("LA", (2, 1), (100, 128)), "PNG"), [(177,) * 3] * 2, [(100,) * 3] * 2),
        (encoded(Image.new("RGBA", (2, 1), (*RED, 0)), "PNG"), [WHITE, WHITE], [RED, RED]),
        (encoded(Image.frombytes("1", (2, 1), b"\x80"), "PNG"), [WHITE, (0, 0, 0)], [WHITE, (0, 0, 0)]),
        (two_frames(), [RED, RED], [RED, RED]),
    ],
    ids=["CMYK", "palette", "LA", "RGBA", "1 bit", "animated"],
)
def test_shallow_modes_become_rgb_on_white_or_without_their_transparency(data: bytes, white: list, plain: list) -> None:
    assert [tuple(pixel) for pixel in np.asarray(on_white(opened(data)))[0].tolist()] == white
    rgb = to_rgb(opened(data))
    assert [tuple(pixel) for pixel in np.asarray(rgb)[0].tolist()] == plain and "transparency" not in rgb.info


def test_on_white_leaves_an_opaque_rgb_picture_as_it_is() -> None:
    picture = Image.new("RGB", (2, 2), RED)
    assert on_white(picture) is picture


def test_only_the_formats_that_are_asked_for_are_tried() -> None:
    message = "broken image: not a picture of the formats PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"
    with pytest.raises(ValueError, match=message):
        decode_image(encoded(Image.new("L", (2, 2)), "PPM"))


def noise_jpeg(mode: str = "RGB", **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8)
    return encoded(Image.fromarray(values, "CMYK").convert(mode), "JPEG", **options)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_which_pillow_would_fill_a_part_with_grey_is_broken(mode: str, options: dict[str, object]) -> None:
    whole = noise_jpeg(mode, **options)
    half, rest = whole[: len(whole) // 2], len(whole) - len(whole) // 2
    decode_image(whole)
    decode_image(whole + b"what follows the end")
    damaged = {
        "cut, with an end": half + b"\xff\xd9",
        "zeros to the end": half + bytes(rest - 2) + b"\xff\xd9",
        "a hole": half + bytes(500) + whole[len(half) + 500 :],
    }
    for data in damaged.values():
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()  # no error
        with pytest.raises(ValueError, match="broken image: (Corrupt JPEG data|Premature end)"):
            decode_image(data)


def turned(kind: str) -> bytes:
    """Returns a PNG of 2 x 3 pixels that states orientation 6 in one of the ways that Pillow knows."""
    exif = Image.Exif()
    exif[274] = 6
    chunks = PngImagePlugin.PngInfo()
    if kind == "xmp":
        chunks.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    elif kind == "raw profile":
        chunks.add_text("Raw profile type exif", f"\nexif\n8\n{exif.tobytes().hex()}", zip=True)
    else:
        return encoded(Image.new("RGB", (2, 3)), "PNG", exif=exif)
    return encoded(Image.new("RGB", (2, 3)), "PNG", pnginfo=chunks)


def with_last_chunk_behind_the_pixels(png: bytes) -> bytes:
    """Returns the PNG with its eXIf chunk moved behind its IDAT chunk."""
    start, pixels, end = png.index(b"eXIf") - 4, png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    return png[:start] + png[pixels:end] + png[start:pixels] + png[end:]


@pytest.mark.parametrize("kind", ["exif", "xmp", "raw profile", "exif behind the pixels"])
def test_a_png_is_upright_as_its_metadata_say(kind: str) -> None:
    data = turned(kind)
    if kind == "exif behind the pixels":
        data = with_last_chunk_behind_the_pixels(data)
    assert read_header(data)[:2] == decode_image(data).size == (3, 2)


def test_of_a_png_without_metadata_only_the_header_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loaded.append(self))
    assert read_header(encoded(Image.new("RGB", (2, 3)), "PNG")) == (2, 3, "PNG")
    assert not loaded
