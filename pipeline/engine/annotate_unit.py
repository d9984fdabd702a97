"""One unit from reading to its commit: rows are read in batches, run through the stages, and written.

Memory holds a batch of rows and a row group of records, whatever the size of the unit.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics

from pipeline.config import AnnotateConfig
from pipeline.engine.attempts import Attempt, note_path
from pipeline.engine.devices import this_worker
from pipeline.row_stage import RowStage, count_outcome, run_stage
from pipeline.schema import ImageText, Rejection, Row
from pipeline.sources import STAGE as READ
from pipeline.storage.annotation_format import AnnotationWriter, record_of_rejection, record_of_row
from pipeline.storage.beam_files import same_bytes_file
from pipeline.storage.unit_commits import (
    UnitCommit,
    annotation_path,
    delete_commits,
    read_annotations,
    short_hash,
    write_commit,
)
from pipeline.units import Unit, read_unit

STAGE = "annotate"
_Outcome = Row | Rejection | dict[str, Any]  # the last: the record of a row that is not run again
_BATCH_BYTES = 64 << 20  # of pictures; a batch of larger ones has fewer rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitAnnotator:
    """What annotates a unit: stages, config, and where annotations go. Workers get a copy, and call `setup` once."""

    stages: Sequence[RowStage]
    output: str
    fingerprint: Mapping[str, str]
    """What annotations depend on, beside the unit."""
    config: AnnotateConfig
    run_id: str
    """Of the run of the command; engines try again under the same one."""
    retried: Mapping[str, UnitCommit] = dataclasses.field(default_factory=dict)
    """Finished units by name of which only the failed rows are run again; the others are kept as they are."""

    def setup(self) -> None:
        """Loads the models, and says what they run on."""
        for stage in self.stages:
            stage.setup()
        models = [model for stage in self.stages if (model := stage.model())]
        # Of several processes on this machine the first one says what all do, unless they have GPUs of their own.
        if models and not (this_worker() and all("cpu" in model for model in models)):
            _say_once(f"annotate: {', '.join(models)}")

    def annotate(self, unit: Unit) -> UnitCommit:
        """Returns the commit of the annotations of `unit`, after they are written.

        Raises:
            UserError: an input file cannot be read.
        """
        key = key_of(unit, self.fingerprint)
        attempt = Attempt(
            note_path(self.output, unit.name, key),
            run_id=self.run_id,
            timeout_sec=self.config.read.stall_timeout_sec,
            name=unit.name,
        )
        files = {part.path: part.file for part in unit.parts}
        outcomes: collections.Counter[str] = collections.Counter()
        earlier = _EarlierRecords(self._take_back(unit.name))
        with (
            _sparing_what_is_loaded(),
            same_bytes_file(annotation_path(self.output, unit.name)) as file,
            AnnotationWriter(file) as writer,
        ):
            for batch in self._annotated_batches(unit, attempt, earlier, files):
                # With the name that the file has below the inputs' folder, the bytes do not depend on that folder.
                records = [_record(one, files) for one in batch]
                writer.write(records)
                outcomes.update(_end_of(record) for record in records)
        commit = UnitCommit(
            unit=unit.name,
            key=key,
            sha256=short_hash(file.sha256),
            size_bytes=file.size_bytes,
            num_rows=writer.num_rows,
        )
        write_commit(self.output, commit, outcomes)
        attempt.end()
        Metrics.counter(STAGE, "units_done").inc()
        return commit

    def _take_back(self, unit: str) -> bytes | None:
        """Returns the annotations of a unit that is retried, after their commit is deleted; None of another unit."""
        commit = self.retried.get(unit)
        if commit is None:
            return None
        content = read_annotations(annotation_path(self.output, unit), sha256=commit.sha256)
        delete_commits(self.output, [commit])
        return content

    def _annotated_batches(
        self, unit: Unit, attempt: Attempt, earlier: _EarlierRecords, files: Mapping[str, str]
    ) -> Iterator[list[_Outcome]]:
        """Yields the outcomes of the rows of `unit`, in order."""
        rows = read_unit(unit, self.config.members, attempt.given_up)
        first = 0
        while True:
            end = attempt.end_of_batch(first, self.config.read.rows_per_batch)
            with attempt.working_on(first, end):
                batch = _take(rows, end - first)
                attempt.has_read(first, end)
                outcomes = self._outcomes(batch, first, attempt, earlier, files)
            if not batch:
                return
            yield outcomes
            first += len(batch)

    def _outcomes(
        self,
        batch: Sequence[ImageText | Rejection],
        first: int,
        attempt: Attempt,
        earlier: _EarlierRecords,
        files: Mapping[str, str],
    ) -> list[_Outcome]:
        """Returns what becomes of each row of `batch`, whose first one is row number `first` of the unit."""
        outcomes: list[_Outcome] = []
        for position, item in enumerate(batch):
            count_outcome(READ, item if isinstance(item, Rejection) else None)
            reason = attempt.reason_of(first + position)
            record = earlier.take(files[item.shard], item.row)
            if record is not None:
                outcomes.append(record)
            elif isinstance(item, Rejection):
                outcomes.append(item)
            elif reason is None:
                outcomes.append(Row(pair=item))
            else:
                rejection = Row(pair=item).rejected(stage=STAGE, reason=reason, retryable=True)
                count_outcome(STAGE, rejection)
                outcomes.append(rejection)
        Metrics.counter(READ, "read").inc(len(batch))
        for stage in self.stages:
            places = [place for place, one in enumerate(outcomes) if isinstance(one, Row)]
            if not places:
                break
            rows = [one for one in outcomes if isinstance(one, Row)]
            of_rows = zip(places, run_stage(stage, rows), strict=True)  # pragma: no mutate: `run_stage` checks it
            for place, outcome in of_rows:
                outcomes[place] = outcome
        return outcomes


def key_of(unit: Unit, fingerprint: Mapping[str, str]) -> str:
    """Returns the key of the annotations of `unit`: a hash of all that they depend on."""
    everything = json.dumps([unit.fingerprint, fingerprint], sort_keys=True)
    return short_hash(hashlib.sha256(everything.encode()).hexdigest())


class _EarlierRecords:
    """The annotations of a unit whose failed rows are run again, taken in the order of rows.

    Args:
        content: the file; None: there are none, and all rows are run.
    """

    def __init__(self, content: bytes | None):
        self._records: Iterator[dict[str, Any]] = iter(())
        if content is not None:
            file = pq.ParquetFile(pa.BufferReader(content))
            groups = (file.read_row_group(group).to_pylist() for group in range(file.num_row_groups))
            self._records = (record for group in groups for record in group)
        self._next = next(self._records, None)

    def take(self, shard: str, row: int) -> dict[str, Any] | None:
        """Returns the record of the row, if there is one and the row did not fail; called in the order of rows.

        A row that stood for the rest of a damaged file may be several now: those behind it have no record.
        """
        record = self._next
        if record is None or (record["shard"], record["row"]) != (shard, row):
            return None
        self._next = next(self._records, None)
        return None if record["outcome"] == "failed" else record


def _record(outcome: _Outcome, files: Mapping[str, str]) -> dict[str, Any]:
    """Returns the annotation record of a row; `files` has the name of the input file at each path."""
    if isinstance(outcome, dict):
        return outcome
    record = record_of_row(outcome) if isinstance(outcome, Row) else record_of_rejection(outcome)
    return {**record, "shard": files[record["shard"]]}


@contextlib.contextmanager
def _sparing_what_is_loaded() -> Iterator[None]:
    """Keeps Python from looking for garbage among the objects that are there already.

    Models and libraries are a million of them, and looking through all took 7 % of the time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@functools.cache
def _say_once(line: str) -> None:
    """Prints `line`, once in a process: engines may set up several copies of the annotator."""
    print(line, flush=True)  # pragma: no mutate: flushed to be seen early


def _take(rows: Iterator[ImageText | Rejection], number: int) -> list[ImageText | Rejection]:
    """Returns the next `number` rows, or fewer if their pictures are large or no more are left."""
    taken: list[ImageText | Rejection] = []
    num_bytes = 0
    while len(taken) < number and num_bytes < _BATCH_BYTES and (row := next(rows, None)) is not None:
        taken.append(row)
        num_bytes += len(row.image) if isinstance(row, ImageText) else 0
    return taken


def _end_of(record: Mapping[str, Any]) -> str:
    """Returns the outcome of a row with its stage and reason, such as "dropped/validate/image_too_small"."""
    return "/".join(filter(None, (record["outcome"], record["stage"], record["reason"])))
