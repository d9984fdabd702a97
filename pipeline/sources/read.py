"""The one way to the rows of an input file, whatever its format; the format is chosen by the file's name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection, TaggedOutput

from pipeline.row_stage import count_outcome
from pipeline.schema import Batch, ImageText, Rejection, Row
from pipeline.sources import STAGE, webdataset

_Reader = Callable[..., Iterator[ImageText | Rejection]]
# How the names of files end, and the function that reads them: (path, name of the shard) -> its rows.
_FORMATS: tuple[tuple[re.Pattern[str], _Reader], ...] = ((webdataset.SUFFIX, webdataset.read_tar),)


def read_shard(path: str) -> Iterator[ImageText | Rejection]:
    """Returns the rows of the input file at `path` in order, each a picture with text or the reason why it is not.

    Row numbers count from 0 without a gap. A damaged file ends with one retryable row: how many rows it lost cannot be
    known. A file whose name no format claims is read as a tar.

    Raises:
        UserError: the file cannot be read. It may be whole, so its rows are not given up; engines try again.
    """
    reader = next((reader for suffix, reader in _FORMATS if suffix.search(path)), webdataset.read_tar)
    return reader(path, name=shard_name(path))


def shard_name(path: str) -> str:
    """Returns the name of an input file without folder and suffix: "a/laion.00000.tar" -> "laion.00000"."""
    name = posixpath.basename(path.replace("\\", "/"))
    return next((suffix.sub("", name) for suffix, _ in _FORMATS if suffix.search(name)), name)


class Rows(NamedTuple):
    """The outputs of `ReadShards`."""

    kept: PCollection[Batch]
    rejected: PCollection[Rejection]
    num_rows: PCollection[tuple[str, int]]  # path, rows in it


class ReadShards(beam.PTransform[PCollection[str], Rows]):
    """PCollection of paths -> `.kept` Batches, `.rejected` Rejections, `.num_rows` (path, rows in it)."""

    def __init__(self, *, rows_per_batch: int):
        super().__init__()
        self._rows_per_batch = rows_per_batch

    def expand(self, paths: PCollection[str]) -> Any:
        """Returns the `Rows`."""
        read = paths | beam.ParDo(_ReadDoFn(self._rows_per_batch)).with_outputs("rejected", "num_rows", main="kept")
        return Rows(kept=read.kept, rejected=read.rejected, num_rows=read.num_rows)


class _ReadDoFn(beam.DoFn):
    def __init__(self, rows_per_batch: int):
        self._rows_per_batch = rows_per_batch

    def process(self, path: str) -> Iterator[Any]:
        num_rows, rows = 0, []
        for item in read_shard(path):
            num_rows += 1
            if isinstance(item, Rejection):
                count_outcome(STAGE, item)
                yield TaggedOutput("rejected", item)
                continue
            count_outcome(STAGE, None)
            rows.append(Row(pair=item))
            if len(rows) == self._rows_per_batch:
                yield Batch(shard=path, rows=tuple(rows))
                rows = []
        if rows:
            yield Batch(shard=path, rows=tuple(rows))
        Metrics.counter(STAGE, "read").inc(num_rows)
        yield TaggedOutput("num_rows", (path, num_rows))
