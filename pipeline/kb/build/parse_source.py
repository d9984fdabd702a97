"""A source file -> parsed blocks, by several processes; what cannot be used is counted."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.kb.build.parse_lines import LineParser, Parsed
from pipeline.kb.build.read_dump import Block, DumpFile
from pipeline.schema import UserError

_LINES_MIN = 10_000  # before which a share of bad lines says little
_BAD_NAMED = 5
_parser: LineParser  # of a reading process


@dataclasses.dataclass(kw_only=True)
class SourceCounts:
    """What a source held that did not become an entity."""

    num_lines: int = 0
    num_bad: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)  # the first bad lines: number, what is wrong
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)  # reason -> number

    def add(self, parsed: Parsed) -> None:
        """Counts a block."""
        self.num_lines += parsed.num_lines
        self.num_bad += parsed.num_bad
        self.skipped.update(parsed.skipped)
        room = _BAD_NAMED - len(self.bad)
        self.bad += [f"line {number}: {what}" for number, what in parsed.bad[:room]]

    def check(self, path: str, max_bad_share: float, *, is_end: bool) -> None:
        """Checks that few lines are bad.

        Raises:
            UserError: their share is above `max_bad_share`.
        """
        if self.num_bad > max_bad_share * self.num_lines and (is_end or self.num_lines >= _LINES_MIN):
            lines = f"{self.num_bad:,} of {self.num_lines:,} lines"
            raise UserError(
                f"{path}: {lines} cannot be used, above the share {max_bad_share} of --max-bad-share; the first is in "
                f"{path}, {self.bad[0]}"
            )


def parsed_blocks(
    file: DumpFile, languages: Sequence[str], skipped_kinds: Mapping[str, str], *, num_processes: int
) -> Iterator[Parsed]:
    """Returns what the blocks of `file` hold, in order.

    Args:
        file: the source.
        languages: see `LineParser`.
        skipped_kinds: likewise.
        num_processes: that parse; 1 parses in this one.

    Raises:
        UserError: the file is damaged or pretty-printed JSON, or a process was ended.
    """
    try:
        if num_processes == 1:
            yield from map(LineParser(languages, skipped_kinds).parse, file.blocks())
            return
        # Not forked: threads of this process may hold locks.
        with concurrent.futures.ProcessPoolExecutor(
            num_processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(tuple(languages), dict(skipped_kinds)),
        ) as pool:
            waiting: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
            for block in file.blocks():
                waiting.append(pool.submit(_parse, block))
                if len(waiting) > 2 * num_processes:  # so that memory holds few blocks
                    yield Parsed.from_bytes(waiting.popleft().result())
            while waiting:
                yield Parsed.from_bytes(waiting.popleft().result())
    except concurrent.futures.BrokenExecutor:
        remedy = "memory may be short; build again with fewer --processes"
        raise UserError(f"{file.path}: a process that parses ended by itself; {remedy}") from None
    except UserError as error:
        named = str(error).startswith(file.path)
        raise (error if named else UserError(f"{file.path}, {error}")) from None


def _start(languages: Sequence[str], skipped_kinds: Mapping[str, str]) -> None:
    global _parser
    _parser = LineParser(languages, skipped_kinds)


def _parse(block: Block) -> bytes:
    return _parser.parse(block).to_bytes()
