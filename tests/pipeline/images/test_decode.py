"""Encoded pictures to sizes and pixels."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from pipeline.images.decode import decode_image, read_size
from tests.fakes import ODD_PICTURES, png


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:40], png(1)[:-30], *ODD_PICTURES])
def test_what_is_no_whole_picture_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        decode_image(data)


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:20], *ODD_PICTURES])
def test_what_has_no_readable_header_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        read_size(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_formats_of_the_web_are_read(name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30)).save(buffer, name)
    assert read_size(buffer.getvalue()) == decode_image(buffer.getvalue()).size == (20, 30)
