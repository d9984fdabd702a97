"""Which files the user means: paths, globs, braces, several of them, or a file with a list. One listing for each."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Iterator

from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.storage.disk import one_line

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_COMMA_OUTSIDE_BRACES = re.compile(r",(?![^{}]*\})")
_NAMES_MAX = 1_000_000  # that braces may stand for
_SHOWN = 3  # missing files in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file that exists; its path is never taken for a pattern again."""

    path: str
    name: str
    """Its path below the folder that all files of one listing share: "part0/00000.tar"."""
    size_bytes: int
    updated_sec: float
    """When it was written, since 1970."""


def find_files(patterns: str, *, option: str) -> list[FoundFile]:
    """Returns the files that `patterns`, the value of the command's `option`, means, each once, by name.

    Args:
        patterns: a path, a glob (`*`, `?`, `[…]`), or one with braces (`{00000..00010}`, `{a,b}`); several of them,
            separated by commas; or `@` and the path of a text file that has one on each line. What is the path of a
            file is that file, whatever characters it has.
        option: named in messages, such as "--input".

    Raises:
        UserError: a pattern matches no file, or a folder; or a file that braces name is missing.
    """
    found: dict[str, FileMetadata] = {}
    for pattern in _split(patterns, option):
        for entry in _match(pattern, option):
            if "://" not in entry.path and os.path.isdir(entry.path):
                raise UserError(f"{option} {entry.path} is a folder; give its shards, such as '{entry.path}/*.tar'")
            found.setdefault(_whole_path(entry.path), entry)
    folder = _common_folder(found)
    files = [
        FoundFile(
            path=entry.path,
            name=whole_path[len(folder) :].lstrip("/"),
            size_bytes=entry.size_in_bytes,
            updated_sec=entry.last_updated_in_seconds,
        )
        for whole_path, entry in found.items()
    ]
    return sorted(files, key=lambda file: file.name)


def _split(patterns: str, option: str) -> list[str]:
    """Returns the single patterns.

    Raises:
        UserError: there is none, or the file with the list cannot be read.
    """
    if _is_file(patterns):
        return [patterns]
    if patterns.startswith("@"):
        try:
            with FileSystems.open(patterns[1:]) as file:
                lines = file.read().decode().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{option} {patterns}: the list cannot be read ({one_line(error)}); give @ and the path of a text file "
                "with a path or pattern on each line"
            ) from error
        single = [line.strip() for line in lines]
    else:
        single = [part.strip() for part in _COMMA_OUTSIDE_BRACES.split(patterns)]
    single = [pattern for pattern in single if pattern]
    if not single:
        raise UserError(f"{option} {patterns} names no file; give the path or glob of your tar shards, in quotes")
    return single


def _match(pattern: str, option: str) -> list[FileMetadata]:
    """Returns the files that one pattern means; at least one.

    Raises:
        UserError: no file is meant, or one that braces name is missing.
    """
    try:
        if _is_file(pattern):
            return [FileSystems.get_filesystem(pattern).metadata(pattern)]
        if not _BRACES.search(pattern):
            entries = _list(pattern)
            if not entries:
                raise UserError(
                    f"{option} {pattern} matches no file; give the path or glob of your tar shards, in quotes"
                )
            return entries
        alternatives = list(itertools.islice(_expand(pattern), _NAMES_MAX + 1))
        if len(alternatives) > _NAMES_MAX:
            raise UserError(f"{option} {pattern} names more than {_NAMES_MAX} files; use a glob")
        by_alternative = _list_alternatives(pattern, alternatives)
    except (BeamIOError, ValueError, OSError) as error:
        raise UserError(f"{option} {pattern}: {one_line(error)}; give a path or glob of tars") from error
    missing = [alternative for alternative, entries in by_alternative if not entries]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{option} {pattern}: {len(missing)} of {len(alternatives)} are missing, {', '.join(missing[:_SHOWN])}"
            f"{more}; correct the braces, or use a glob"
        )
    return [entry for _, entries in by_alternative for entry in entries]


def _expand(pattern: str) -> Iterator[str]:
    """Yields what the braces of `pattern` stand for, in order: ranges keep leading zeros, lists their items."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    if numbers := _RANGE.fullmatch(braces[1]):
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
        width = max(len(numbers[1]), len(numbers[2])) if numbers[1][0] == "0" or numbers[2][0] == "0" else 0
        steps = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        items: Iterable[str] = (f"{number:0{width}d}" for number in steps)
    else:
        items = braces[1].split(",")
    for item in items:
        yield from _expand(pattern[: braces.start()] + item + pattern[braces.end() :])


def _list_alternatives(pattern: str, alternatives: list[str]) -> list[tuple[str, list[FileMetadata]]]:
    """Returns (alternative, files that it matches); of one listing, unless the braces reach over folders."""
    if "**" in pattern or any("/" in braces for braces in _BRACES.findall(pattern)):
        return [(alternative, _list(alternative)) for alternative in alternatives]
    wide = pattern
    while _BRACES.search(wide):
        wide = _BRACES.sub("*", wide)
    listed = {entry.path: entry for entry in _list(wide)}
    result = []
    for alternative in alternatives:
        if glob.has_magic(alternative):
            result.append((alternative, [entry for path, entry in listed.items() if _is_like(path, alternative)]))
        else:
            entry = listed.get(alternative)
            result.append((alternative, [] if entry is None else [entry]))
    return result


def _is_like(path: str, pattern: str) -> bool:
    folders, patterns = path.split("/"), pattern.split("/")
    return len(folders) == len(patterns) and all(map(fnmatch.fnmatchcase, folders, patterns))


def _list(pattern: str) -> list[FileMetadata]:
    if "://" in pattern:
        entries: list[FileMetadata] = FileSystems.match([pattern])[0].metadata_list
        return entries
    # Beam would walk through all folders below the first wildcard.
    paths = glob.glob(pattern, recursive=True)
    return [FileMetadata(path, status.st_size, status.st_mtime) for path in paths for status in [os.stat(path)]]


def _is_file(path: str) -> bool:
    """Returns whether `path`, taken literally, is a file; a remote one is asked for only if it looks like a pattern."""
    if "://" not in path:
        return os.path.isfile(path)
    try:
        return bool(glob.has_magic(path) or _BRACES.search(path) or "," in path) and bool(FileSystems.exists(path))
    except (BeamIOError, ValueError):  # it is no path of a file system that Beam knows
        return False


def _whole_path(path: str) -> str:
    return path if "://" in path else posixpath.join("/", os.path.abspath(path).replace(os.sep, "/"))


def _common_folder(whole_paths: Iterable[str]) -> str:
    """Returns the folder that the files share, up to and with its slash; "" if they share none."""
    folders = [path.rpartition("/")[0].split("/") for path in whole_paths]
    shared = os.path.commonprefix(folders) if folders else []
    return "/".join(shared)
