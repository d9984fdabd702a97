"""Encoded pictures to pixels."""

from __future__ import annotations

import pytest

from pipeline import images
from pipeline.images import decode_image
from tests.fakes import png


def test_a_picture_of_too_many_pixels_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PIXELS_MAX", 14)
    with pytest.raises(ValueError, match="more than 14 pixels"):
        decode_image(png(1))


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:40], png(1)[:-30]])
def test_what_is_no_whole_picture_is_broken(data: bytes) -> None:
    with pytest.raises(ValueError, match="broken image"):
        decode_image(data)
