"""Files -> blocks of whole lines: compressed or not, streaming, in bounded memory."""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import indexed_bzip2
import zstandard
from isal import igzip, isal_zlib

from pipeline.schema import UserError

SUFFIXES = (".json", ".jsonl", ".gz", ".bz2", ".zst")
LINE_BYTES_MAX = 32 << 20  # the largest items have some 5 MB (ours)
_BLOCK_BYTES = 2 << 20
_READ_BYTES = 1 << 20
_READS_PER_REPORT = 64
# A part of this size holds at most 2,048 blocks of 128 kB; of text it becomes some 100 kB.
_ZSTD_PART_BYTES = 8 << 10
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# What the decompressors raise for damaged files.
DAMAGED: tuple[type[Exception], ...] = (
    EOFError,
    ValueError,
    OSError,
    RuntimeError,
    zlib.error,
    cast(Any, isal_zlib.error),
    zstandard.ZstdError,
)


class Block(NamedTuple):
    """Some lines of a file."""

    first_line: int  # number of the first, from 1
    content: bytes  # whole lines; empty in place of a line that is too long


class DumpFile:
    """A file with one entity per line. Reading it once also gives its hash.

    Args:
        path: the suffix tells the compression: `.gz`, `.bz2`, `.zst` or none.
        num_threads: that decompress `.bz2`.
        progress: is called with the number of bytes of the file that were read since the last call.
    """

    def __init__(self, path: str, *, num_threads: int = 1, progress: Callable[[int], object] = lambda size: None):
        self.path = path
        self._num_threads = num_threads
        self._progress = progress
        self._sha256 = hashlib.sha256()
        self._hashing: threading.Thread | None = None

    def blocks(self) -> Iterator[Block]:
        """Returns the lines, without a byte order mark; those above `LINE_BYTES_MAX` as empty blocks.

        Raises:
            UserError: the file cannot be read or decompressed, or is not UTF-8.
        """
        try:
            with open(self.path, "rb") as file:
                yield from _lines(self._decompressed(file), self.path)
        except DAMAGED as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: {_reason(error)}; repair the source and build again") from None

    def sha256(self) -> str:
        """Returns the hash of the file, once all blocks are read."""
        if self._hashing is not None:
            self._hashing.join()
        return self._sha256.hexdigest()

    def _decompressed(self, file: BinaryIO) -> Iterator[bytes]:
        if self.path.endswith(".bz2"):
            yield from self._bzip2(file)
        elif self.path.endswith(".zst"):
            yield from _zstd(self._raw(file))
        elif self.path.endswith(".gz"):
            unzipped: BinaryIO = cast(Any, igzip.IGzipFile)(fileobj=_Counted(file, self._count), mode="rb")
            with unzipped:
                while content := unzipped.read(_READ_BYTES):
                    yield content
        else:
            yield from self._raw(file)

    def _count(self, content: Any) -> None:
        self._sha256.update(content)
        self._progress(len(content))

    def _raw(self, file: BinaryIO) -> Iterator[bytes]:
        while content := file.read(_READ_BYTES):
            self._count(content)
            yield content

    def _bzip2(self, file: BinaryIO) -> Iterator[bytes]:
        """Threads decompress the blocks of the file, out of order: another thread hashes it."""
        if file.read(3) != b"BZh":
            raise ValueError("not compressed by bzip2")
        self._hashing = threading.Thread(target=self._hash, daemon=True)
        self._hashing.start()
        num_read, reported, size = 0, 0, os.path.getsize(self.path)
        with indexed_bzip2.open(self.path, parallelization=self._num_threads) as unzipped:
            for reads in itertools.count(1):
                if not (content := unzipped.read(_READ_BYTES)):
                    break
                yield content
                num_read += len(content)
                if reads % _READS_PER_REPORT == 0:
                    known = unzipped.available_block_offsets()  # bits of the file -> bytes of the content
                    at = max((bits for bits, start in known.items() if start <= num_read), default=0) // 8
                    self._progress(at - reported)
                    reported = at
        self._progress(size - reported)

    def _hash(self) -> None:
        with open(self.path, "rb") as file:
            while content := file.read(_READ_BYTES):
                self._sha256.update(content)


class _Counted(io.RawIOBase):
    """What the gzip reader reads; the content is counted on the way."""

    def __init__(self, file: BinaryIO, count: Callable[[Any], None]) -> None:
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = cast(io.RawIOBase, self._file).readinto(buffer) or 0
        self._count(memoryview(buffer)[:size])
        return size


def _zstd(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Returns what the frames hold, one after the other.

    Raises:
        EOFError: the last is cut off.
    """
    decompressor = None
    for whole in parts:
        slices = collections.deque(whole[at : at + _ZSTD_PART_BYTES] for at in range(0, len(whole), _ZSTD_PART_BYTES))
        while slices:
            part = slices.popleft()
            if decompressor is None:
                decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            if content := decompressor.decompress(part):
                yield content
            if decompressor.eof:
                if decompressor.unused_data:
                    slices.appendleft(decompressor.unused_data)
                decompressor = None
    if decompressor is not None:
        raise EOFError("compressed file ended before the end of its last frame")


def _lines(parts: Iterator[bytes], path: str) -> Iterator[Block]:
    held: list[bytes] = []  # parts of whole lines, and the beginning of the next one
    held_bytes = 0
    line = 1
    is_first = True
    is_too_long = False
    for part in parts:
        if is_first:
            if part[:2] in _UTF16:
                raise UserError(f"{path}: is UTF-16; convert it to UTF-8")
            part, is_first = part.removeprefix(_BOM), False
        if is_too_long:
            _, newline, part = part.partition(b"\n")
            if not newline:
                continue
            is_too_long = False
            yield Block(line, b"")
            line += 1
        held.append(part)
        held_bytes += len(part)
        if held_bytes < _BLOCK_BYTES:
            continue
        content = b"".join(held)
        end = content.rfind(b"\n") + 1
        rest = content[end:]
        held, held_bytes = [rest], len(rest)
        if end:
            yield Block(line, content[:end])
            line += content.count(b"\n", 0, end)
        if held_bytes > LINE_BYTES_MAX:
            held, held_bytes, is_too_long = [], 0, True
    if is_too_long:
        yield Block(line, b"")
    elif content := b"".join(held):
        yield Block(line, content)


def _reason(error: Exception) -> str:
    if str(error) == "std::exception":  # of indexed_bzip2
        return "damaged or cut off"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


def size_of(path: str) -> int:
    """Returns the size of the file at `path`, in bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb"):
            return os.path.getsize(path)
    except OSError as error:
        remedy = "give --source an existing dump or kb_source.jsonl"
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
