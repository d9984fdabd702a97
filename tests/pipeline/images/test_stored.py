"""What a set stores of each kind of picture; TensorFlow, as TensorFlow Datasets calls it, decodes all of it."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from pipeline.images.decode import decode_image, read_header
from pipeline.images.stored import stored_image, without_metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ORIENTATION = 274


def encoded(picture: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def by_tensorflow(data: bytes) -> np.ndarray:
    import tensorflow as tf

    return tf.io.decode_image(data, channels=3).numpy()


def photo(width_px: int = 48, height_px: int = 32) -> Image.Image:
    """Returns a picture whose corners differ: red falls to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(255, 0, width_px), np.linspace(0, 255, height_px))
    return Image.fromarray(np.dstack([red, green, np.full_like(red, 60)]).astype(np.uint8))


def assert_alike(first: np.ndarray, second: np.ndarray, tolerance: int = 12) -> None:
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second.astype(int)).max() <= tolerance


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[271] = "A maker"
    return exif


@pytest.mark.parametrize(
    "data",
    [
        encoded(photo(), "JPEG"),
        encoded(photo(), "JPEG", progressive=True),
        encoded(photo(), "JPEG", restart_marker_rows=1),
        encoded(photo().convert("L"), "JPEG"),
        encoded(photo(), "PNG"),
        encoded(photo().convert("P"), "PNG"),
        encoded(photo().convert("L"), "PNG"),
        encoded(photo().convert("1"), "PNG"),
        encoded(photo().convert("RGBA"), "PNG"),
        encoded(photo().convert("LA"), "PNG"),
    ],
    ids=["jpeg", "progressive", "restarts", "grey", "png", "palette", "grey png", "1 bit", "rgba", "la"],
)
def test_plain_jpeg_and_png_keep_their_bytes(data: bytes) -> None:
    stored = stored_image(data, max_side_px=48)
    assert stored.encoded is data and (stored.width_px, stored.height_px) == (48, 32)
    assert by_tensorflow(data).shape == (32, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(name: str, orientation: int) -> None:
    data = encoded(photo(), name, exif=exif_of(orientation))
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert expected.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    stored = stored_image(data)
    assert (stored.height_px, stored.width_px) == expected.shape[:2]
    assert read_header(data)[:2] == (stored.width_px, stored.height_px) == decode_image(data).size
    assert_alike(by_tensorflow(stored.encoded), expected)
    assert b"A maker" not in stored.encoded and Image.open(io.BytesIO(stored.encoded)).getexif() == {}


def test_a_damaged_remark_leaves_the_picture_as_it_is() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0damage" + bytes(range(200)))
    assert read_header(data)[:2] == (48, 32)
    assert stored_image(data).encoded == encoded(photo(), "JPEG")


@pytest.mark.parametrize(
    ("data", "name", "tolerance"),
    [
        (encoded(photo(), "WEBP", quality=95), "JPEG", 30),
        (encoded(photo(), "WEBP", lossless=True), "PNG", 0),
        (encoded(photo(), "AVIF", quality=95), "JPEG", 30),
        (encoded(photo(), "BMP"), "PNG", 0),
        (encoded(photo(), "TIFF"), "PNG", 0),
        (encoded(photo().convert("RGBA"), "WEBP", quality=95), "JPEG", 30),  # its alpha hides nothing
    ],
    ids=["webp", "lossless webp", "avif", "bmp", "tiff", "opaque webp"],
)
def test_other_formats_become_jpeg_or_png(data: bytes, name: str, tolerance: int) -> None:
    stored = stored_image(data)
    assert Image.open(io.BytesIO(stored.encoded)).format == name
    assert_alike(by_tensorflow(stored.encoded), np.asarray(photo()), tolerance)
    assert stored_image(stored.encoded).encoded is stored.encoded  # what is stored needs nothing


def test_transparent_pictures_stay_transparent() -> None:
    picture = photo().convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 0))
    stored = stored_image(encoded(picture, "WEBP", lossless=True, exact=True))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.encoded))), np.asarray(picture))
    gif = encoded(Image.new("P", (4, 4)), "GIF", transparency=0)
    assert np.asarray(Image.open(io.BytesIO(stored_image(gif).encoded)).convert("RGBA"))[0, 0, 3] == 0
    assert by_tensorflow(stored_image(gif).encoded).shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_stored(name: str) -> None:
    blue = Image.new("RGB", (48, 32), (0, 0, 255))
    data = encoded(blue, name, save_all=True, append_images=[photo(), blue], quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.n_frames == 3
    stored = stored_image(data)
    with Image.open(io.BytesIO(stored.encoded)) as picture:
        assert getattr(picture, "n_frames", 1) == 1
    assert_alike(by_tensorflow(stored.encoded), np.asarray(blue))


def test_16_bits_are_stored_as_8() -> None:
    grey = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    for name in ("PNG", "TIFF"):
        stored = stored_image(encoded(Image.fromarray(grey), name))
        # v / 257, rounded, as in test_decode.
        assert by_tensorflow(stored.encoded)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    # Pillow cannot write 16 bits of colour: a PNG by hand, of one pixel, whose samples are 0x1234, 0x5678 and 0xFFFF.
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\x12\x34\x56\x78\xff\xff")),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    stored = stored_image(data)
    assert stored.encoded[24] == 8 and by_tensorflow(stored.encoded).tolist() == [[[0x12, 0x56, 0xFF]]]


def test_cmyk_is_stored_as_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for name in ("JPEG", "TIFF"):
        stored = stored_image(encoded(cyan, name))
        assert_alike(by_tensorflow(stored.encoded), np.full((8, 8, 3), (0, 255, 255)), tolerance=3)


def profile(red: tuple[float, float]) -> bytes:
    """Returns an ICC profile of sRGB whose red lies elsewhere (CIE XYZ, first two values)."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entry = data.index(b"rXYZ")  # of the table of tags: name, place, length
    (place,) = struct.unpack_from(">I", data, entry + 4)
    data[place + 8 : place + 16] = struct.pack(">ii", *(round(65536 * value) for value in red))
    return bytes(data).replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_colours_are_brought_to_srgb_by_the_profile(name: str) -> None:
    wide = profile((0.60, 0.30))
    data = encoded(Image.new("RGB", (16, 16), (200, 100, 50)), name, icc_profile=wide, quality=95)
    expected = ImageCms.profileToProfile(
        Image.new("RGB", (16, 16), (200, 100, 50)),
        ImageCms.ImageCmsProfile(io.BytesIO(wide)),
        ImageCms.createProfile("sRGB"),
    )
    assert expected is not None and abs(expected.getpixel((0, 0))[0] - 200) > 15  # the profile matters
    stored = stored_image(data)
    assert_alike(by_tensorflow(stored.encoded), np.asarray(expected), tolerance=6)
    assert_alike(np.asarray(decode_image(data)), np.asarray(expected), tolerance=6)
    assert "icc_profile" not in Image.open(io.BytesIO(stored.encoded)).info


@pytest.mark.parametrize("icc", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile"])
def test_a_profile_of_srgb_or_of_nothing_is_cut_out_and_the_pixels_stay(icc: bytes) -> None:
    for name in ("JPEG", "PNG"):
        assert stored_image(encoded(photo(), name, icc_profile=icc)).encoded == encoded(photo(), name)


def test_metadata_is_cut_out_and_the_pixels_stay() -> None:
    plain = encoded(photo(), "JPEG")
    noisy = encoded(photo(), "JPEG", exif=exif_of(1), comment=b"a comment", xmp=b"<xmp/>")
    assert all(text in noisy for text in (b"A maker", b"a comment", b"<xmp/>"))
    assert stored_image(noisy).encoded == plain
    assert stored_image(noisy + b"a film").encoded == plain
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "someone")
    text.add_itxt("Place", "somewhere")
    assert stored_image(encoded(photo(), "PNG", pnginfo=text, exif=exif_of(1)) + b"tail").encoded == encoded(
        photo(), "PNG"
    )


def test_the_segment_that_says_how_colours_are_coded_stays() -> None:
    data = encoded(photo(), "JPEG", keep_rgb=True)  # Pillow marks it by Adobe's segment, or by the components' names
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    marked = data[:2] + adobe + b"\xff\xed\x00\x04ab" + data[2:]
    assert without_metadata(marked) == data[:2] + adobe + data[2:]


@pytest.mark.parametrize("cut", [10, 80, -30, -2])
def test_a_file_that_ends_early_cannot_be_stripped(cut: int) -> None:
    assert without_metadata(encoded(photo(), "JPEG")[:cut]) is None
    assert without_metadata(encoded(photo(), "PNG")[:cut]) is None


def test_a_file_that_cannot_be_stripped_is_encoded_again() -> None:
    data = encoded(photo(), "JPEG")
    odd = data[:20] + b"\0\0" + data[20:]  # bytes between two segments, which decoders pass over
    assert_alike(np.asarray(decode_image(odd)), np.asarray(photo()), 30)
    stored = stored_image(odd)
    assert without_metadata(stored.encoded) is stored.encoded
    assert_alike(by_tensorflow(stored.encoded), np.asarray(photo()), 30)


def test_what_the_markers_of_a_jpeg_tell_is_what_pillow_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    kinds = [
        encoded(photo(), "JPEG"), encoded(photo(), "JPEG", progressive=True), encoded(photo().convert("L"), "JPEG"),
        encoded(photo(), "JPEG", restart_marker_rows=1), encoded(photo(), "JPEG", exif=exif_of(6)),
        encoded(photo(), "JPEG", comment=b"a comment"), encoded(photo().convert("CMYK"), "JPEG"),
    ]  # fmt: skip
    inserted = [b"\xff", b"\0", b"\xff\xd9", b"\xff\xfe\0\x04ab", b"\xff\xe1\0\x04ab", b"\xff\xdd\0\x04\0\x01"]
    num_plain = 0
    for _ in range(2000):
        data = bytearray(random.choice(kinds))
        place = random.randrange(min(700, len(data)))
        if random.random() < 0.5:
            data[place] = random.choice([0, 1, 0xC0, 0xD9, 0xE1, 0xFF])
        else:
            data[place:place] = random.choice(inserted)
        damaged = bytes(data)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.images.stored._size_of_plain_jpeg", lambda _: None)
            try:
                decode_image(damaged)  # what cannot be decoded was dropped before
                expected = stored_image(damaged)
            except ValueError:
                continue
        found = stored_image(damaged)
        assert found == expected
        num_plain += found.encoded is damaged
    assert num_plain > 300


def test_pillow_decides_about_jpegs_that_are_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), "JPEG")
    frame = data.index(b"\xff\xc0")
    opened = []
    open_picture = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or open_picture(*args, **options))

    def is_asked(changed: bytes) -> bool:
        opened.clear()
        with contextlib.suppress(ValueError):
            stored_image(changed)
        return bool(opened)

    assert not is_asked(data)
    assert is_asked(data[:20] + b"\xff" + data[20:])  # a byte to fill up
    assert is_asked(data + b"\0")
    assert is_asked(data[: frame + 4] + b"\x0c" + data[frame + 5 :])  # 12 bits
    assert is_asked(data[: frame + 9] + b"\x02" + data[frame + 10 :])  # two colours
    assert is_asked(data[: frame + 1] + b"\xc9" + data[frame + 2 :])  # arithmetic coding
    assert is_asked(data[: frame + 5] + bytes(2) + data[frame + 7 :])  # no height
    assert is_asked(data[:frame] + data[frame : frame + 19] * 2 + data[frame + 19 :])  # two frames
    assert is_asked(data[:2] + b"\xff\xe0\0\x08JFXX\0\0" + data[2:])  # a small picture beside it
    monkeypatch.setattr("pipeline.images.stored._PLAIN_PIXELS_MAX", 48 * 32)
    assert not is_asked(data)
    monkeypatch.setattr("pipeline.images.stored._PLAIN_PIXELS_MAX", 48 * 32 - 1)
    assert is_asked(data)


@pytest.mark.parametrize(("side_px", "size"), [(24, (24, 16)), (47, (47, 31)), (48, (48, 32)), (1, (1, 1))])
def test_long_sides_are_reduced(side_px: int, size: tuple[int, int]) -> None:
    stored = stored_image(encoded(photo(), "JPEG", quality=95), max_side_px=side_px)
    assert (stored.width_px, stored.height_px) == size == Image.open(io.BytesIO(stored.encoded)).size
    if side_px == 24:
        assert_alike(by_tensorflow(stored.encoded), np.asarray(photo(*size)), 30)


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA"])
def test_pictures_of_every_mode_can_be_reduced(mode: str) -> None:
    stored = stored_image(encoded(photo().convert(mode), "PNG"), max_side_px=12)
    assert by_tensorflow(stored.encoded).shape == (8, 12, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(photo(), "WEBP")[:-60]])
def test_a_broken_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        stored_image(data)
