"""WebDataset tars -> rows: members of a tar that share a key are one row.

The key is the name up to the first dot. Members of a row are neighbours, as a rule. Those that are not are put together
if they begin at most `JOIN_ROWS` rows and `JOIN_BYTES` bytes behind the first one. This depends on names and places
alone, so a row has the same number and the same members whether all of a tar is read or a part of it.
"""

from __future__ import annotations

import array
import collections
import re
import tarfile
from collections.abc import Callable, Iterator

from apache_beam.io.filesystem import BeamIOError

from pipeline.config import MembersConfig
from pipeline.schema import ImageText, Rejection
from pipeline.sources import STAGE, WHOLE_SHARD, ShardPart
from pipeline.sources.member_rules import Content, MemberRules, Unread
from pipeline.sources.tar_links import LinkTargets
from pipeline.sources.tar_members import DAMAGE, EndMark, Tar, open_tar_file, unreadable_file

SUFFIX = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz)$")
JOIN_ROWS = 1000
JOIN_BYTES = 64 << 20
_MEMBER_BYTES_MAX = 256 << 20  # larger ones are not read: no picture is as large, and memory is bounded


def read_tar(
    path: str, *, name: str, config: MembersConfig, part: ShardPart, reason_of: Callable[[int], str | None]
) -> Iterator[ImageText | Rejection]:
    """Returns the rows of `part` of the tar at `path`; see `pipeline.sources.read.read_shard`.

    Row numbers count the keys of the tar. Rows without a key get the id `name:row`.

    Raises:
        UserError: the tar cannot be read.
    """
    rules = MemberRules(config)
    joiner = _Joiner(rules, part.first_row)

    def outcome(row: _Row) -> ImageText | Rejection:
        found = _outcome(row, path, name, rules, reason_of(row.number))
        row.members = dict.fromkeys(row.members, b"")  # the names may still be asked for, the bytes not
        return found

    try:
        with open_tar_file(path) as (file, is_compressed):
            tar = Tar(file, start_byte=part.start_byte, end_byte=part.end_byte)
            links = None if is_compressed else LinkTargets(file)
            for member in tar:
                if isinstance(member, EndMark):
                    if not member.is_proper:
                        joiner.add_lost_row()
                    continue
                named = _key_and_suffix(member)
                if named is None:
                    continue
                # Read before it joins a row: where the bytes are damaged, the row is not known to have this member.
                content, start_byte = _content(tar, member, links) if rules.is_read(named[1]) else (b"", None)
                row = joiner.row_of(*named, member.offset)
                row.members[named[1]] = content
                if start_byte is not None and not is_compressed:
                    row.start_bytes[named[1]] = start_byte
                yield from map(outcome, joiner.take_finished())
    except (*DAMAGE, OSError) as error:
        # gzip and bz2 report damage as an OSError without a number. Errors of a disk have one, those of a store are
        # Beam's.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, BeamIOError)):
            raise unreadable_file(path, error) from error
        joiner.end_with_lost_row()
    yield from map(outcome, joiner.take_rest())


def split_tar(path: str, *, max_rows: int, max_bytes: int) -> tuple[ShardPart, ...]:
    """Returns parts of the tar at `path`, in order, that together are all of it; see `read.split_shard`.

    It reads the headers of all members. A tar stays whole if it is compressed, if it is several tars in one file, or if
    a key comes again far behind its row: then what becomes of a row depends on rows far before it.
    """
    joiner = _Joiner(MemberRules(MembersConfig()), 0)
    first_bytes, last_bytes = array.array("q"), array.array("q")  # of the headers of each row
    try:
        with open_tar_file(path) as (file, is_compressed):
            if is_compressed:
                return (WHOLE_SHARD,)
            for member in Tar(file):
                if isinstance(member, EndMark):
                    return (WHOLE_SHARD,)
                named = _key_and_suffix(member)
                if named is None:
                    continue
                row = joiner.row_of(*named, member.offset)
                row.members[named[1]] = b""
                if row.earlier is not None:
                    return (WHOLE_SHARD,)
                if row.number == len(first_bytes):
                    first_bytes.append(member.offset)
                    last_bytes.append(member.offset)
                last_bytes[row.number] = member.offset
                joiner.take_rest()
    except DAMAGE:
        pass  # whoever reads the last part meets the damage there
    return _parts(first_bytes, last_bytes, max_rows=max_rows, max_bytes=max_bytes)


def _parts(
    first_bytes: array.array[int], last_bytes: array.array[int], *, max_rows: int, max_bytes: int
) -> tuple[ShardPart, ...]:
    parts, start, last_byte = [], WHOLE_SHARD, -1
    for row, (first, last) in enumerate(zip(first_bytes, last_bytes, strict=True)):
        is_full = row - start.first_row >= max_rows or first - start.start_byte >= max_bytes
        if is_full and last_byte < first:  # no row before this one has a member behind its beginning
            parts.append(start._replace(end_row=row, end_byte=first))
            start = ShardPart(first_row=row, start_byte=first)
        last_byte = max(last_byte, last)
    return (*parts, start)


class _Row:
    """A row whose members are being put together."""

    __slots__ = ("earlier", "is_lost", "is_near", "key", "members", "number", "start_byte", "start_bytes")

    def __init__(self, number: int, key: str | None, start_byte: int, earlier: bool | None):
        self.number = number
        self.key = key
        self.start_byte = start_byte
        self.earlier = earlier  # None: the key is new; else whether an earlier row with it had all that it needs
        self.members: dict[str, Content] = {}
        self.start_bytes: dict[str, int] = {}  # of the contents of members that lie in the file as they are
        self.is_near = key is not None  # whether members that are not its neighbours may still join
        self.is_lost = key is None  # whether the tar is damaged here


class _Joiner:
    """Puts members together to rows, and hands the rows out in order once they are finished."""

    def __init__(self, rules: MemberRules, first_row: int):
        self._rules = rules
        self._num_rows = first_row
        self._last: _Row | None = None  # the row of the last member
        self._waiting: collections.deque[_Row] = collections.deque()
        self._near: collections.deque[_Row] = collections.deque()
        self._near_by_key: dict[str, _Row] = {}
        self._far: dict[str, bool] = {}  # key -> whether a row with it, before the near ones, had all that it needs

    def row_of(self, key: str, suffix: str, start_byte: int) -> _Row:
        """Returns the row that a member joins, which may be a new one."""
        row = self._last
        if row is None or row.key != key:
            self._forget_far_rows(start_byte)
            row = self._near_by_key.get(key)
        if row is None or suffix in row.members:
            row = self._add_row(key, start_byte)
        self._last = row
        return row

    def add_lost_row(self) -> None:
        """Adds a row for what is lost between two members."""
        self._waiting.append(_Row(self._num_rows, None, 0, None))
        self._num_rows += 1
        self._last = None

    def end_with_lost_row(self) -> None:
        """Marks the row of the last member as lost, or adds a lost row behind it if it had all that it needs."""
        if self._last is None or self._rules.is_whole(self._last.members):
            self.add_lost_row()
        else:
            self._last.is_lost = True

    def take_finished(self) -> list[_Row]:
        """Returns the rows that wait for no further member, up to the first that does, and forgets them."""
        rows: list[_Row] = []
        while self._waiting and self._waiting[0] is not self._last:
            row = self._waiting[0]
            if row.is_near and not self._rules.is_whole(row.members):
                break
            rows.append(self._waiting.popleft())
        return rows

    def take_rest(self) -> list[_Row]:
        """Returns the rows that were not handed out, and forgets them."""
        rows = list(self._waiting)
        self._waiting.clear()
        return rows

    def _add_row(self, key: str, start_byte: int) -> _Row:
        before = self._near_by_key.get(key)
        earlier = self._far.get(key) if before is None else self._rules.is_whole(before.members)
        row = _Row(self._num_rows, key, start_byte, earlier)
        self._num_rows += 1
        self._waiting.append(row)
        self._near.append(row)
        self._near_by_key[key] = row
        return row

    def _forget_far_rows(self, start_byte: int) -> None:
        while self._near:
            row = self._near[0]
            if self._num_rows - row.number <= JOIN_ROWS and start_byte - row.start_byte <= JOIN_BYTES:
                return
            self._near.popleft()
            row.is_near = False
            assert row.key is not None
            self._far[row.key] = self._far.get(row.key, False) or self._rules.is_whole(row.members)
            if self._near_by_key.get(row.key) is row:
                del self._near_by_key[row.key]


def _key_and_suffix(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Returns the key and the suffix, in small letters, of a file or link; None for what is no part of a row."""
    if not (member.isreg() or member.islnk() or member.issym()):
        return None
    name = member.name
    if not name.isascii():
        # Names in another encoding come as surrogates, which no file of ours can hold: they are escaped.
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem:  # "._1.jpg" beside "1.jpg": macOS keeps attributes of the file there
        return None
    return folder + slash + stem, suffix.lower()


def _content(tar: Tar, member: tarfile.TarInfo, links: LinkTargets | None) -> tuple[Content, int | None]:
    """Returns the bytes of a file or of what a link leads to, and where they begin in the tar, if they lie together.

    Links in compressed tars are not followed.
    """
    file = member if member.isreg() else links.find(member) if links else None
    if file is None:
        return Unread("unresolved_link"), None
    if file.size > _MEMBER_BYTES_MAX:
        return Unread("file_too_large"), None
    return tar.content(file), None if file.issparse() else file.offset_data


def _outcome(row: _Row, path: str, name: str, rules: MemberRules, failure: str | None) -> ImageText | Rejection:
    image_id = row.key if row.key is not None else f"{name}:{row.number}"
    if row.is_lost:
        failure = "truncated_shard" if row.number or row.key is not None else "unreadable_shard"
    if failure:
        return Rejection(image_id=image_id, shard=path, row=row.number, stage=STAGE, reason=failure, retryable=True)
    found = rules.find(row.members)
    reason = found.reason
    if row.earlier is not None:
        # Two halves of a row, too far from each other to be joined; or else the same row again.
        is_half = not row.earlier and not rules.is_whole(row.members)
        reason = "members_apart" if is_half else "duplicate_key"
    if reason:
        return Rejection(
            image_id=image_id,
            shard=path,
            row=row.number,
            stage=STAGE,
            reason=reason,
            text=found.text,
            fields=found.fields,
        )
    return ImageText(
        image_id=image_id,
        image=found.image,
        text=found.text,
        shard=path,
        row=row.number,
        fields=found.fields,
        image_start_byte=row.start_bytes.get(found.image_suffix),
    )
