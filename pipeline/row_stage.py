"""The shape that all stages share: a pure function, two outputs `.kept` and `.rejected`, a counter for every outcome.

Stages never import each other; they import this. Counters are in the namespace of the stage's name: `kept`, and
`rejected_<reason>` for each reason.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Split(beam.PTransform[PCollection[Any], Outputs]):
    """PCollection -> `.kept` and `.rejected`, by a function that returns for each element what becomes of it.

    Args:
        function: element and side inputs -> what is kept and what is rejected.
        side_inputs: further arguments of `function`, as Beam's `ParDo` takes them.
        stage: the name that outcomes are counted under.
        rejection: the type of what is rejected.
        is_last: whether no later part of the stage can still reject an element; only then is it counted as kept.
    """

    def __init__(
        self,
        function: Callable[..., Iterable[Any]],
        *side_inputs: Any,
        stage: str,
        rejection: type[Rejected],
        is_last: bool = True,
    ):
        super().__init__()
        self._function = function
        self._side_inputs = side_inputs
        self._stage = stage
        self._rejection = rejection
        self._is_last = is_last

    def expand(self, elements: PCollection[Any]) -> Any:
        """Returns the `Outputs`."""
        do_fn = _SplitDoFn(self._function, self._stage, self._rejection, self._is_last)
        return _outputs(
            elements | "Split" >> beam.ParDo(do_fn, *self._side_inputs).with_outputs("rejected", main="kept")
        )


class _SplitDoFn(beam.DoFn):
    def __init__(self, function: Callable[..., Iterable[Any]], stage: str, rejection: type[Rejected], is_last: bool):
        self._function = function
        self._stage = stage
        self._rejection = rejection
        self._is_last = is_last

    def default_type_hints(self) -> None:
        """Returns no hints: Beam would take `*side_inputs: Any` for a tuple, and refuse every side input."""

    def process(self, element: Any, *side_inputs: Any) -> Iterator[Any]:
        for outcome in self._function(element, *side_inputs):
            if isinstance(outcome, self._rejection):
                count_outcome(self._stage, outcome)
                yield TaggedOutput("rejected", outcome)
            else:
                if self._is_last:
                    count_outcome(self._stage, None)
                yield outcome


def count_outcome(stage: str, rejected: Rejected | None, *, number: int = 1) -> None:
    """Counts `number` outcomes of `stage`: kept if `rejected` is None, else rejected for its reason."""
    Metrics.counter(stage, "kept" if rejected is None else f"rejected_{rejected.reason}").inc(number)


def _outputs(split: Any) -> Outputs:
    return Outputs(kept=split.kept, rejected=split.rejected)
