"""The shape of a stage: two outputs, and a counter for every outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult
from apache_beam.testing.util import assert_that, equal_to

from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import Batch, ImageText, Rejection, Row


def row(number: int, text: str) -> Row:
    return Row(pair=ImageText(image_id=f"p{number}", image=b"", text=text, shard="s", row=number))


class KeepLong(RowStage):
    """Keeps texts of at least `limit` characters; needs its model to be loaded."""

    name = "keep_long"

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit

    def setup(self) -> None:
        self._model = self.limit

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return [
            one
            if len(one.pair.text) >= self._model
            else one.rejected(stage=self.name, reason="too_short" if one.pair.text else "empty")
            for one in rows
        ]

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> Mapping[str, int]:
        return {"characters": sum(len(one.pair.text) for one in outcomes if isinstance(one, Row))}


class Forgetful(KeepLong):
    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        return super().run(rows)[:-1]


def counters(result: PipelineResult, stage: str) -> dict[str, int]:
    found = result.metrics().query(MetricsFilter().with_namespace(stage))["counters"]
    return {counter.key.metric.name: counter.committed for counter in found}


def test_every_row_is_kept_or_rejected_and_counted_under_the_name_of_the_stage() -> None:
    first = Batch(shard="s", rows=(row(0, "long"), row(1, "no"), row(2, ""), row(3, "longer")))
    second = Batch(shard="t", rows=(row(4, "a"),))  # of which nothing is left
    job = beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1)))
    outputs = job | beam.Create([first, second]) | KeepLong(4)
    kept = outputs.kept | "Ids" >> beam.Map(lambda batch: (batch.shard, [one.pair.image_id for one in batch.rows]))
    rejected = outputs.rejected | "Reasons" >> beam.Map(lambda one: (one.image_id, one.stage, one.reason))
    assert_that(kept, equal_to([("s", ["p0", "p3"])]), label="kept")
    expected = [("p1", "keep_long", "too_short"), ("p2", "keep_long", "empty"), ("p4", "keep_long", "too_short")]
    assert_that(rejected, equal_to(expected), label="rejected")
    result = job.run()
    result.wait_until_finish()
    # "long" and "longer" have 4 + 6 characters.
    assert counters(result, "keep_long") == {"kept": 2, "rejected_too_short": 2, "rejected_empty": 1, "characters": 10}


def test_a_stage_that_forgets_a_row_is_an_error() -> None:
    with (
        pytest.raises(Exception, match="stage keep_long returned 1 outcomes for 2 rows"),
        beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1))) as job,
    ):
        job | beam.Create([Batch(shard="s", rows=(row(0, "long"), row(1, "long")))]) | Forgetful(1)
