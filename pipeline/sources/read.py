"""The one way to the rows of an input file, whatever its format; the format is chosen by the file's name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.config import DEFAULT_MEMBERS, MembersConfig
from pipeline.schema import ImageText, Rejection
from pipeline.sources import WHOLE_SHARD, ShardPart, webdataset
from pipeline.sources.tar_members import unreadable_file

_Reader = Callable[..., Iterator[ImageText | Rejection]]
# How the names of files end, and the function that reads them: (path, name of the shard) -> its rows.
_FORMATS: tuple[tuple[re.Pattern[str], _Reader], ...] = ((webdataset.SUFFIX, webdataset.read_tar),)


def read_shard(
    path: str,
    *,
    config: MembersConfig = DEFAULT_MEMBERS,
    part: ShardPart = WHOLE_SHARD,
    reason_of: Callable[[int], str | None] = lambda row: None,
) -> Iterator[ImageText | Rejection]:
    """Returns the rows of the input file at `path` in order, each a picture with text or the reason why it is not.

    Row numbers count from 0 without a gap. Where a file is damaged there is one retryable row: how many rows are lost
    cannot be known. A file whose name no format claims is read as a tar.

    Args:
        path: the file, local or remote. It is never taken for a pattern.
        config: what of the file is picture, text and further fields.
        part: one of those that `split_shard` returned for the same bytes. Its rows are those of the whole file with
            the numbers `first_row` to `end_row - 1`, equal in all they have.
        reason_of: row number -> why the row is not to be looked into; None if it is. It then becomes a retryable row
            of that reason, and neither its text nor its picture is touched.

    Raises:
        UserError: the file cannot be read. It may be whole, so its rows are not given up; engines try again.
    """
    reader = next((reader for suffix, reader in _FORMATS if suffix.search(path)), webdataset.read_tar)
    return reader(path, name=shard_name(path), config=config, part=part, reason_of=reason_of)


def read_ranges(path: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Returns the bytes of the input file at `path` in each of `ranges`; fewer where the file ends.

    Args:
        path: the file, local or remote. It is never taken for a pattern.
        ranges: (start byte, size in bytes). Where they ascend, a remote file is read in large pieces.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            for start_byte, size_bytes in ranges:
                file.seek(start_byte)
                yield file.read(size_bytes)
    except OSError as error:
        raise unreadable_file(path, error) from error


def split_shard(path: str, *, max_rows: int, max_bytes: int) -> tuple[ShardPart, ...]:
    """Returns the parts in which the input file at `path` may be read, in order; together they are all of it.

    A part ends at the first row at which it has `max_rows` rows or `max_bytes` bytes. A plain tar is split; its headers
    are read for that, some 20 microseconds a member on a local disk. Other files, and tars in which what becomes of a
    row depends on rows far before it, stay whole: one part, `WHOLE_SHARD`. Only the last part has no `end_row` and
    no `end_byte`; if the file is damaged, whoever reads that part meets it.

    Raises:
        OSError: the file cannot be read.
    """
    return webdataset.split_tar(path, max_rows=max_rows, max_bytes=max_bytes)


def shard_name(path: str) -> str:
    """Returns the name of an input file without folder and suffix: "a/laion.00000.tar" -> "laion.00000"."""
    return without_suffix(posixpath.basename(path.replace("\\", "/")))


def without_suffix(path: str) -> str:
    """Returns `path` without the suffix of its format: "a/laion.00000.tar" -> "a/laion.00000"."""
    return next((suffix.sub("", path) for suffix, _ in _FORMATS if suffix.search(path)), path)
