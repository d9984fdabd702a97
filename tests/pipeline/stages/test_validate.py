"""Pictures are judged by their header."""

from __future__ import annotations

import pytest

from pipeline.config import ValidateConfig
from pipeline.schema import ImageText, Rejection, Row
from pipeline.stages.validate import validate_row
from tests.fakes import ODD_PICTURES, bmp_header, png


def row(image: bytes) -> Row:
    return Row(pair=ImageText(image_id="a", image=image, text="t", shard="s", row=3))


def test_the_limit_on_pixels_may_be_raised() -> None:
    assert isinstance(validate_row(row(bmp_header(20_000, 8_000)), ValidateConfig(max_image_megapixels=170)), Row)


def test_a_good_picture_gets_its_size() -> None:
    result = validate_row(row(png(1, size_px=20)), ValidateConfig())
    assert isinstance(result, Row) and (result.width_px, result.height_px) == (20, 20)


@pytest.mark.parametrize(
    ("image", "config", "reason"),
    [
        (b"no picture", ValidateConfig(), "unreadable_image"),
        (b"", ValidateConfig(), "unreadable_image"),
        *((odd, ValidateConfig(), "unreadable_image") for odd in ODD_PICTURES),
        (png(1, size_px=15), ValidateConfig(min_side_px=16), "image_too_small"),
        (png(1, size_px=100), ValidateConfig(max_image_megapixels=0.009), "image_too_large"),  # 0.01 megapixels
        (bmp_header(20_000, 8_000), ValidateConfig(), "image_too_large"),  # 160 megapixels
        (bmp_header(16, 4_000_000), ValidateConfig(), "image_too_long"),  # 64
        (bmp_header(1_000, 19), ValidateConfig(), "image_too_long"),
        (bmp_header(30_000, 8_000), ValidateConfig(), "image_too_large"),  # 240, and Pillow refuses those above 179
    ],
)
def test_a_bad_picture_is_dropped_with_its_reason(image: bytes, config: ValidateConfig, reason: str) -> None:
    result = validate_row(row(image), config)
    assert isinstance(result, Rejection)
    assert (result.image_id, result.row, result.stage, result.reason) == ("a", 3, "validate", reason)
    assert not result.retryable
