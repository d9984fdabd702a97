"""One unit from reading to its commit: rows are read in batches, run through the stages, and written.

Memory holds a batch of rows and a row group of records, whatever the size of the unit.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics

from pipeline.config import AnnotateConfig
from pipeline.engine.attempts import Attempt, note_path
from pipeline.row_stage import RowStage, count_outcome, run_stage
from pipeline.schema import ImageText, Rejection, Row
from pipeline.sources import STAGE as READ
from pipeline.storage.annotation_format import AnnotationWriter, record_of_rejection, record_of_row
from pipeline.storage.beam_files import same_bytes_file
from pipeline.storage.unit_commits import UnitCommit, annotation_path, short_hash, write_commit
from pipeline.units import Unit, read_unit

STAGE = "annotate"
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

    def setup(self) -> None:
        """Loads the models."""
        for stage in self.stages:
            stage.setup()

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
        with same_bytes_file(annotation_path(self.output, unit.name)) as file, AnnotationWriter(file) as writer:
            for batch in self._annotated_batches(unit, attempt):
                records = [record_of_row(one) if isinstance(one, Row) else record_of_rejection(one) for one in batch]
                # With the name that the file has below the inputs' folder, the bytes do not depend on that folder.
                writer.write([{**record, "shard": files[record["shard"]]} for record in records])
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

    def _annotated_batches(self, unit: Unit, attempt: Attempt) -> Iterator[list[Row | Rejection]]:
        """Yields the outcomes of the rows of `unit`, in order."""
        rows = read_unit(unit, self.config.members)
        first = 0
        while True:
            end = attempt.end_of_batch(first, self.config.read.rows_per_batch)
            with attempt.working_on(first, end):
                batch = _take(rows, end - first)
                outcomes = self._outcomes(batch, first, attempt)
            if not batch:
                return
            yield outcomes
            first += len(batch)

    def _outcomes(self, batch: Sequence[ImageText | Rejection], first: int, attempt: Attempt) -> list[Row | Rejection]:
        """Returns what becomes of each row of `batch`, whose first one is row number `first` of the unit."""
        outcomes: list[Row | Rejection] = []
        for position, item in enumerate(batch):
            count_outcome(READ, item if isinstance(item, Rejection) else None)
            reason = attempt.reason_of(first + position)
            if isinstance(item, Rejection):
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
            for place, outcome in zip(places, run_stage(stage, rows), strict=True):
                outcomes[place] = outcome
        return outcomes


def key_of(unit: Unit, fingerprint: Mapping[str, str]) -> str:
    """Returns the key of the annotations of `unit`: a hash of all that they depend on."""
    everything = json.dumps([unit.fingerprint, fingerprint], sort_keys=True)
    return short_hash(hashlib.sha256(everything.encode()).hexdigest())


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
