"""Drops rows whose picture cannot be used, by its header alone: pixels are decoded only where an entity is found."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.config import ValidateConfig
from pipeline.images.decode import ImageTooLarge, read_size
from pipeline.schema import Rejection, Row

STAGE = "validate"


def validate_row(row: Row, config: ValidateConfig) -> Row | Rejection:
    """Returns the row with its picture's width and height in pixels, or the reason to drop it."""
    reason = ""
    width_px = height_px = 0
    try:
        width_px, height_px = read_size(row.pair.image)
    except ImageTooLarge:
        reason = "image_too_large"
    except ValueError:
        reason = "unreadable_image"
    if not reason:
        if width_px * height_px > config.max_image_megapixels * 1e6:
            reason = "image_too_large"
        elif min(width_px, height_px) < config.min_side_px:
            reason = "image_too_small"
        elif max(width_px, height_px) > config.max_aspect_ratio * min(width_px, height_px):
            reason = "image_too_long"
    if reason:
        return row.rejected(stage=STAGE, reason=reason)
    return dataclasses.replace(row, width_px=width_px, height_px=height_px)


class _ValidateDoFn(beam.DoFn):
    def __init__(self, config: ValidateConfig):
        self._config = config

    def process(self, batch):  # type: ignore[no-untyped-def]
        kept = []
        for row in batch.rows:
            result = validate_row(row, self._config)
            if isinstance(result, Rejection):
                Metrics.counter(STAGE, result.reason).inc()
                yield beam.pvalue.TaggedOutput("rejected", result)
            else:
                kept.append(result)
        Metrics.counter(STAGE, "kept").inc(len(kept))
        if kept:
            yield dataclasses.replace(batch, rows=tuple(kept))


class Validate(beam.PTransform):
    """PCollection of Batches -> `.kept` Batches whose rows know their size, `.rejected` Rejections."""

    def __init__(self, config: ValidateConfig):
        super().__init__()
        self._config = config

    def expand(self, batches):  # type: ignore[no-untyped-def]
        return batches | beam.ParDo(_ValidateDoFn(self._config)).with_outputs("rejected", main="kept")
