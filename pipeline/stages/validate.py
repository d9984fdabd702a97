"""Drops rows whose picture cannot be used, by its header alone: pixels are decoded only for texts with an entity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.config import ValidateConfig
from pipeline.images.decode import Header, ImageTooLarge, read_header
from pipeline.row_stage import RowStage
from pipeline.schema import Rejection, Row

STAGE = "validate"


def validate_row(row: Row, config: ValidateConfig) -> Row | Rejection:
    """Returns the row with its picture's size and format, or the reason to drop it."""
    reason = ""
    header = Header(0, 0, "")
    try:
        header = read_header(row.pair.image)
    except ImageTooLarge:
        reason = "image_too_large"
    except ValueError:
        reason = "unreadable_image"
    width_px, height_px, image_format = header
    if not reason:
        if width_px * height_px > config.max_image_megapixels * 1e6:
            reason = "image_too_large"
        elif min(width_px, height_px) < config.min_side_px:
            reason = "image_too_small"
        elif max(width_px, height_px) > config.max_aspect_ratio * min(width_px, height_px):
            reason = "image_too_long"
    if reason:
        return row.rejected(stage=STAGE, reason=reason)
    return dataclasses.replace(row, width_px=width_px, height_px=height_px, image_format=image_format)


class Validate(RowStage):
    """Keeps the rows whose picture can be used; they then know its size and format. See `RowStage` for its outputs."""

    name = STAGE

    def __init__(self, config: ValidateConfig):
        super().__init__()
        self._config = config

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return [validate_row(row, self._config) for row in rows]
