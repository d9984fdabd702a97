"""WebDataset tars -> rows: consecutive members of a tar that share a key are one row."""

from __future__ import annotations

import contextlib
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator

import zstandard
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import ImageText, Rejection, UserError
from pipeline.sources import STAGE
from pipeline.sources.clean import clean_text
from pipeline.storage.disk import one_line

SUFFIX = re.compile(r"\.tar(\.(gz|bz2|deflate|xz|zst))?$")  # Beam decompresses these
IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp"})
_READ_SUFFIXES = IMAGE_SUFFIXES | {"txt"}
_BLOCK_BYTES = 512
_ESCAPE = "backslashreplace"
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def read_tar(path: str, *, name: str) -> Iterator[ImageText | Rejection]:
    """Returns the rows of the tar at `path`; see `pipeline.sources.read.read_shard`.

    Row numbers count the keys of the tar. Rows without a key get the id `name:row`.

    Raises:
        UserError: the tar cannot be read.
    """
    row = 0
    seen: set[str] = set()
    members: dict[str, bytes] = {}
    key: str | None = None

    def outcome(reason: str, *, retryable: bool = False) -> Rejection:
        image_id = key if key is not None else f"{name}:{row}"
        return Rejection(image_id=image_id, shard=path, row=row, stage=STAGE, reason=reason, retryable=retryable)

    try:
        for member_key, suffix, content in _members(path):
            if key is not None and (member_key != key or suffix in members):
                yield _finish_row(path, row, key, members, seen)
                row, members = row + 1, {}
            key = member_key
            members[suffix] = content
    except (*_DAMAGE, OSError) as error:
        # bz2 reports damage as an OSError without a number; errors of a disk or a store have one, or are Beam's.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, BeamIOError)):
            raise UserError(
                f"{path} cannot be read ({one_line(error)}); check that it exists, and run again"
            ) from error
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
            if not stem:  # "._1.jpg" beside "1.jpg": macOS keeps attributes of the file there
                continue
            suffix = suffix.lower()
            # Others, such as videos, may be as large as memory.
            content = _content(tar, member) if suffix in _READ_SUFFIXES else b""
            yield posixpath.join(folder, stem), suffix, content
        # tarfile accepts a file that was cut between two members as whole: check the end mark here.
        file.seek(tar.offset)
        if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise tarfile.ReadError("no end-of-archive mark")


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Returns the members; raises if one does not start after the one before it, since reading would never end."""
    before = -1
    while True:
        with _reporting_damage():
            member = tar.next()
        if member is None:
            return
        if member.size < 0 or member.offset <= before:
            raise tarfile.ReadError("a member starts before the one before it")
        before = member.offset
        yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _reporting_damage():
        content = tar.extractfile(member)
        assert content is not None  # it is a file
        return content.read()


@contextlib.contextmanager
def _reporting_damage() -> Iterator[None]:
    """Turns the errors that impossible sizes and offsets cause into tarfile's own error."""
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
        text = clean_text(members["txt"].decode()) if "txt" in members else None
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
