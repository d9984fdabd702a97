"""WebDataset tars -> batches of rows: members that share a key, side by side in the tar, are one row."""

from __future__ import annotations

import contextlib
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator

import apache_beam as beam
import zstandard
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from pipeline.schema import Batch, ImageText, Rejection, Row, UserError

STAGE = "read"
IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp"})
_READ_SUFFIXES = IMAGE_SUFFIXES | {"txt"}
_BLOCK_BYTES = 512
_SUFFIX = re.compile(r"\.tar(\.(gz|bz2|deflate|xz|zst))?$")  # Beam unpacks these
_ESCAPE = "backslashreplace"
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def shard_name(path: str) -> str:
    """Returns the name of an input file without folder and suffix: "a/laion.00000.tar" -> "laion.00000"."""
    return _SUFFIX.sub("", posixpath.basename(path.replace("\\", "/")))


def read_shard(path: str) -> Iterator[ImageText | Rejection]:
    """Returns the rows of the tar at `path` in order, each a picture with text or the reason why it is none.

    Row numbers count the keys of the tar from 0 without a gap. A damaged tar ends with one retryable row: how many rows
    it lost cannot be known.

    Raises:
        UserError: the tar cannot be read. It may be whole, so its rows are not given up; engines try again.
    """
    row = 0
    seen: set[str] = set()
    members: dict[str, bytes] = {}
    key: str | None = None

    def outcome(reason: str, *, retryable: bool = False) -> Rejection:
        image_id = key if key is not None else f"{shard_name(path)}:{row}"
        return Rejection(image_id=image_id, shard=path, row=row, stage=STAGE, reason=reason, retryable=retryable)

    try:
        for member_key, suffix, content in _members(path):
            if key is not None and (member_key != key or suffix in members):
                yield _finish_row(path, row, key, members, seen)
                row, members = row + 1, {}
            key = member_key
            members[suffix] = content
    except (*_DAMAGE, OSError) as error:
        # bz2 tells of damage by an OSError without a number; those of a disk or a store have one, or are Beam's.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, BeamIOError)):
            told = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({told}); see that it is there, and run again") from error
        if key is not None and _has_both(members):
            yield _finish_row(path, row, key, members, seen)
            row, key = row + 1, None
        yield outcome("truncated_shard" if row or key is not None else "unreadable_shard", retryable=True)
        return
    if key is not None:
        yield _finish_row(path, row, key, members, seen)


def _members(path: str) -> Iterator[tuple[str, str, bytes]]:
    """Returns (key, suffix, content) of each file in the tar; raises where the tar is damaged."""
    with FileSystems.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in _headers(tar):
            if not member.isfile():
                continue
            # Names in another encoding come as surrogates, which no file of ours can hold: they are escaped.
            folder, name = posixpath.split(member.name.encode("utf-8", "surrogateescape").decode("utf-8", _ESCAPE))
            stem, _, suffix = name.partition(".")
            if not stem:  # "._1.jpg" beside "1.jpg": what macOS knows of it
                continue
            suffix = suffix.lower()
            # Others, such as videos, may be as large as memory.
            content = _content(tar, member) if suffix in _READ_SUFFIXES else b""
            yield posixpath.join(folder, stem), suffix, content
        # tarfile takes a file cut between two members for a whole one: look for the end mark ourselves.
        file.seek(tar.offset)
        if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise tarfile.ReadError("no end-of-archive mark")


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Returns the members; raises where one does not lie behind the one before it, and reading on would never end."""
    before = -1
    while True:
        with _told_as_damage():
            member = tar.next()
        if member is None:
            return
        if member.size < 0 or member.offset <= before:
            raise tarfile.ReadError("a member lies before the one before it")
        before = member.offset
        yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _told_as_damage():
        content = tar.extractfile(member)
        assert content is not None  # it is a file
        return content.read()


@contextlib.contextmanager
def _told_as_damage() -> Iterator[None]:
    """Turns what tarfile raises of numbers that no file can have into its own error."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from error


def _has_both(members: dict[str, bytes]) -> bool:
    return "txt" in members and not IMAGE_SUFFIXES.isdisjoint(members)


def _finish_row(path: str, row: int, key: str, members: dict[str, bytes], seen: set[str]) -> ImageText | Rejection:
    image = next((content for suffix, content in members.items() if suffix in IMAGE_SUFFIXES), None)
    text: str | None = None
    reason = ""
    try:
        text = members["txt"].decode().strip() if "txt" in members else None
    except UnicodeDecodeError:
        reason = "undecodable_text"
    if key in seen:
        reason = "duplicate_key"
    elif image is None:
        reason = "missing_image"
    elif "txt" not in members:
        reason = "missing_text"
    elif text == "":
        reason = "empty_text"
    seen.add(key)
    if reason:
        return Rejection(image_id=key, shard=path, row=row, stage=STAGE, reason=reason, text=text or "")
    assert image is not None and text is not None
    return ImageText(image_id=key, image=image, text=text, shard=path, row=row)


class _ReadDoFn(beam.DoFn):
    def __init__(self, rows_per_batch: int):
        self._rows_per_batch = rows_per_batch

    def process(self, path):  # type: ignore[no-untyped-def]
        num_rows, rows = 0, []
        for item in read_shard(path):
            num_rows += 1
            if isinstance(item, Rejection):
                Metrics.counter(STAGE, item.reason).inc()
                yield beam.pvalue.TaggedOutput("rejected", item)
                continue
            rows.append(Row(pair=item))
            if len(rows) == self._rows_per_batch:
                yield Batch(shard=path, rows=tuple(rows))
                rows = []
        if rows:
            yield Batch(shard=path, rows=tuple(rows))
        Metrics.counter(STAGE, "read").inc(num_rows)
        yield beam.pvalue.TaggedOutput("num_rows", (path, num_rows))


class ReadWebDataset(beam.PTransform):
    """PCollection of tar paths -> `.kept` Batches, `.rejected` Rejections, `.num_rows` (path, rows in it)."""

    def __init__(self, *, rows_per_batch: int):
        super().__init__()
        self._rows_per_batch = rows_per_batch

    def expand(self, paths):  # type: ignore[no-untyped-def]
        return paths | beam.ParDo(_ReadDoFn(self._rows_per_batch)).with_outputs("rejected", "num_rows", main="kept")
