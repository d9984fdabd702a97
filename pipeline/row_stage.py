"""The shape that all stages share: a pure function, two outputs `.kept` and `.rejected`, a counter for every outcome.

Stages never import each other; they import this. Counters are in the namespace of the stage's name: `kept`, and
`rejected_<reason>` for each reason.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from pipeline.schema import Batch, Rejection, Row


class Outputs(NamedTuple):
    """The two outputs of a stage."""

    kept: PCollection[Any]
    rejected: PCollection[Any]


class Rejected(Protocol):
    """What ends an element, such as `Rejection` of a row: it names the reason."""

    @property
    def reason(self) -> str: ...


class RowStage(beam.PTransform[PCollection[Batch], Outputs], abc.ABC):
    """PCollection of Batches -> `.kept` Batches and `.rejected` Rejections; every row ends in one of the two.

    A stage sets `name`, loads its models in `setup`, and judges rows in `run`. Workers get a copy of the stage, so
    whatever it holds before `setup` must be picklable.
    """

    name: ClassVar[str]

    def setup(self) -> None:  # noqa: B027  a stage without models has nothing to load
        """Loads what `run` needs; called once in each worker."""

    def model(self) -> str:
        """Returns the stage's model and what it runs on, such as "tagger on cuda:0"; "" without one. Needs `setup`."""
        return ""

    @abc.abstractmethod
    def run(self, rows: Sequence[Row]) -> Sequence[Row | Rejection]:
        """Returns the outcome of each of `rows`, in their order."""

    def further_counts(self, outcomes: Sequence[Row | Rejection]) -> Mapping[str, int]:
        """Returns what the stage counts beside its outcomes: name -> number."""
        return {}

    def expand(self, batches: PCollection[Batch]) -> Any:
        """Returns the `Outputs`. (Beam would warn of a named tuple in the annotation.)"""
        return _outputs(batches | "Rows" >> beam.ParDo(_RowDoFn(self)).with_outputs("rejected", main="kept"))


class _RowDoFn(beam.DoFn):
    def __init__(self, stage: RowStage):
        self._stage = stage

    def setup(self) -> None:
        self._stage.setup()

    def process(self, batch: Batch) -> Iterator[Any]:
        outcomes = run_stage(self._stage, batch.rows)
        for outcome in outcomes:
            if isinstance(outcome, Rejection):
                yield TaggedOutput("rejected", outcome)
        kept = tuple(outcome for outcome in outcomes if isinstance(outcome, Row))
        if kept:
            yield dataclasses.replace(batch, rows=kept)


def run_stage(stage: RowStage, rows: Sequence[Row]) -> Sequence[Row | Rejection]:
    """Returns the outcome of each of `rows` in `stage`, and counts them.

    Raises:
        RuntimeError: the stage lost a row, gave it two outcomes, or changed their order.
    """
    outcomes = stage.run(rows)
    if len(outcomes) != len(rows):
        raise RuntimeError(
            f"stage {stage.name} returned {len(outcomes)} outcomes for {len(rows)} rows; every stage must keep or "
            "reject each row once"
        )
    for row, outcome in zip(rows, outcomes, strict=True):
        place = (outcome.pair.shard, outcome.pair.row) if isinstance(outcome, Row) else (outcome.shard, outcome.row)
        if place != (row.pair.shard, row.pair.row):
            raise RuntimeError(
                f"stage {stage.name} returned the outcome of row {place[1]} of {place[0]} where that of row "
                f"{row.pair.row} of {row.pair.shard} is expected; every stage must return outcomes in the order of rows"
            )
        if isinstance(outcome, Rejection):
            count_outcome(stage.name, outcome)
    count_outcome(stage.name, None, number=sum(isinstance(outcome, Row) for outcome in outcomes))
    for counter, number in stage.further_counts(outcomes).items():
        Metrics.counter(stage.name, counter).inc(number)
    return outcomes


def count_outcome(stage: str, rejected: Rejected | None, *, number: int = 1) -> None:
    """Counts `number` outcomes of `stage`: kept if `rejected` is None, else rejected for its reason."""
    Metrics.counter(stage, "kept" if rejected is None else f"rejected_{rejected.reason}").inc(number)


def _outputs(split: Any) -> Outputs:
    return Outputs(kept=split.kept, rejected=split.rejected)
