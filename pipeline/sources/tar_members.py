"""Tar files -> their members: also of tars that were compressed, concatenated, cut off, or that have holes of zeros.

Python's `tarfile` parses the headers. It takes the first block of zeros for the end, whatever follows; here what
follows an end mark is looked at: zeros up to the end of the record are the end, another header begins an archive that
was appended, and anything else means that something is lost.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from isal import igzip, isal_zlib

from pipeline.schema import UserError
from pipeline.storage.disk import one_line

_BLOCK_BYTES = 512
_RECORD_BYTES = 20 * _BLOCK_BYTES  # what tars are padded to, unless told otherwise
_END_MARK_BYTES = 2 * _BLOCK_BYTES
_READ_BYTES = 1 << 16
_MAGIC_BYTES = 6
# What reading raises where a file is damaged. bz2 and gzip also raise an OSError, without a number.
DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    cast(Any, isal_zlib.error),
    lzma.LZMAError,
    zstandard.ZstdError,
)


class EndMark(NamedTuple):
    """An end mark behind which another archive begins."""

    is_proper: bool
    """False: its length shows that it is a hole, in which members were lost."""


@contextlib.contextmanager
def open_tar_file(path: str) -> Iterator[tuple[IO[bytes], bool]]:
    """Opens the file at `path`, local or remote, and returns it and whether it is compressed.

    A compressed one is decompressed; its first bytes tell how, whatever its name says.
    """
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        magic = file.read(_MAGIC_BYTES)
        file.seek(0)
        decompressed = _decompressed(file, magic)
        if decompressed is None:
            yield file, False
        else:
            with decompressed:
                yield decompressed, True


def _decompressed(file: IO[bytes], magic: bytes) -> Any:
    """Returns a file of what `file`, which begins with `magic`, decompresses to; None if it is not compressed."""
    if magic.startswith(b"\x1f\x8b"):
        return igzip.GzipFile(fileobj=file)  # type: ignore[no-untyped-call]
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_ZstdFile(file), _READ_BYTES)
    return None


class _ZstdFile(io.RawIOBase):
    """A reader that a buffer can be put around; it takes the steps back by a byte that tarfile does."""

    def __init__(self, file: IO[bytes]):
        self._reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._reader.readinto(buffer))

    def tell(self) -> int:
        return int(self._reader.tell())

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(position, whence))  # raises if it leads back


class Tar:
    """A tar, read from a byte on: iterating gives its members in order, and `content` the bytes of the last one.

    Args:
        file: the open file, decompressed.
        start_byte: where the header of the first member to be read begins.
        end_byte: where to stop: no member whose header begins there or later is read. None: at the end of the file.
    """

    def __init__(self, file: IO[bytes], *, start_byte: int = 0, end_byte: int | None = None):
        self._file = file
        self._start_byte = start_byte
        self._end_byte = end_byte
        self._archive: tarfile.TarFile | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo | EndMark]:
        """Yields the members, of any type, and an `EndMark` wherever another archive follows one.

        Raises:
            one of DAMAGE: the rest of the file cannot be read, or its end is missing.
        """
        position: int | None = self._start_byte
        mark: EndMark | None = None
        while position is not None:
            for member in self._members_from(position):
                if self._end_byte is not None and member.offset >= self._end_byte:
                    return
                if mark is not None:
                    yield mark
                    mark = None
                yield member
            assert self._archive is not None
            end = self._archive.offset
            if self._end_byte is not None and end >= self._end_byte:
                return
            begin, position = position, self._behind_zeros(end)
            if position is not None:
                num_zeros = position - end
                fills_record = num_zeros == _END_MARK_BYTES or (position - begin) % _RECORD_BYTES == 0
                mark = EndMark(_END_MARK_BYTES <= num_zeros < _RECORD_BYTES + _END_MARK_BYTES and fills_record)

    def content(self, member: tarfile.TarInfo) -> bytes:
        """Returns the bytes of `member`, a file of the archive that is being read.

        Raises:
            one of DAMAGE: they are cut off or damaged.
        """
        if member.issparse():
            assert self._archive is not None
            with reporting_damage():
                part = self._archive.extractfile(member)
                assert part is not None  # it is a file
                return part.read()
        return read_at(self._file, member.offset_data, member.size)

    def _members_from(self, position: int) -> Iterator[tarfile.TarInfo]:
        """Yields the members of the archive that begins at `position`, up to a block that is not a header.

        Raises:
            tarfile.TarError: a member does not start after the one before it, so that reading would never end.
        """
        self._file.seek(position)
        with reporting_damage():
            # The encoding is named, since the default depends on the locale.
            archive = tarfile.TarFile(fileobj=self._file, encoding="utf-8", errors="surrogateescape")
        self._archive = archive
        before = -1
        while True:
            with reporting_damage():
                member = archive.next()
            if member is None:
                return
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
            if member.size < 0 or member.offset <= before:
                raise tarfile.ReadError("a member starts before the one before it")
            before = member.offset
            yield member

    def _behind_zeros(self, mark: int) -> int | None:
        """Returns where the first block that is not zeros begins behind `mark`; None if the file ends with zeros.

        Raises:
            tarfile.TarError: there are no zeros, or they fill more than the record.
        """
        self._file.seek(mark)
        num_zeros = 0
        while chunk := self._file.read(_READ_BYTES):
            rest = chunk.lstrip(b"\0")
            num_zeros += len(chunk) - len(rest)
            if rest:
                break
        if num_zeros < _BLOCK_BYTES:
            raise tarfile.ReadError("no end-of-archive mark")
        if chunk:
            return mark + num_zeros - num_zeros % _BLOCK_BYTES
        if num_zeros >= _RECORD_BYTES + _END_MARK_BYTES:
            raise tarfile.ReadError(f"{num_zeros} bytes of zeros at the end, where a record has {_RECORD_BYTES}")
        return None


def unreadable_file(path: str, error: OSError) -> UserError:
    """Returns the error of a file that cannot be read now, which may be whole all the same."""
    return UserError(f"{path} cannot be read ({one_line(error)}); check that it exists, and run again")


def read_at(file: IO[bytes], start_byte: int, size_bytes: int) -> bytes:
    """Returns `size_bytes` bytes of `file` from `start_byte` on.

    Raises:
        tarfile.TarError: the file ends before.
    """
    with reporting_damage():
        file.seek(start_byte)
        content = file.read(size_bytes)
    if len(content) < size_bytes:
        raise tarfile.ReadError("unexpected end of data")
    return content


class reporting_damage:  # noqa: N801  a context manager; as a class it costs a third of a generator, for each member
    """Turns the errors that impossible sizes and offsets cause into tarfile's own error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ValueError, OverflowError, MemoryError)):
            raise tarfile.ReadError(str(error)) from error
