"""A source file -> parsed blocks, by several processes; what cannot be used is counted."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.kb.build.parse_lines import LineParser, Parsed
from pipeline.kb.build.processes import Processes
from pipeline.kb.build.read_dump import Block, DumpFile
from pipeline.schema import UserError

_LINES_MIN = 10_000  # before which a share of bad lines says little
_BAD_NAMED = 5


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
    file: DumpFile, languages: Sequence[str], skipped_kinds: Mapping[str, str], processes: Processes
) -> Iterator[Parsed]:
    """Returns what the blocks of `file` hold, in order.

    Args:
        file: the source.
        languages: see `LineParser`.
        skipped_kinds: likewise.
        processes: that parse.

    Raises:
        UserError: the file is damaged or pretty-printed JSON, or a process was ended.
    """
    kinds = tuple(skipped_kinds.items())
    try:
        for parsed in processes.map(_parse, ((block, tuple(languages), kinds) for block in file.blocks())):
            yield Parsed.from_bytes(parsed)
    except UserError as error:
        named = str(error).startswith(file.path)
        raise (error if named else UserError(f"{file.path}, {error}")) from None


def _parse(block: Block, languages: tuple[str, ...], skipped_kinds: tuple[tuple[str, str], ...]) -> bytes:
    return _parser(languages, skipped_kinds).parse(block).to_bytes()


@functools.lru_cache(maxsize=1)
def _parser(languages: tuple[str, ...], skipped_kinds: tuple[tuple[str, str], ...]) -> LineParser:
    return LineParser(languages, dict(skipped_kinds))
