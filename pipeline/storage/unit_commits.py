"""Which units are finished: a commit record per unit, whose name alone says what it commits.

A record is written after its annotations. Its name holds the unit, the key of all that the annotations depend on, and
their hash, size and number of rows, so one listing tells the state of all units: no record is opened for it. Its
content are the numbers of rows by outcome, for people and for the progress line.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Collection, Iterable, Mapping

from pipeline.schema import UserError
from pipeline.storage.beam_files import delete_files, list_folder, read_bytes, write_bytes

ANNOTATIONS_FOLDER = "annotations"
COMMITS_FOLDER = "units/commits"
_HASH_LENGTH = 16  # hexadecimal digits of a hash that a name holds: names are at most 255 bytes long
_SUFFIX = ".json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitCommit:
    """What a commit record says of the annotations of a unit."""

    unit: str
    key: str
    """A hash of all that the annotations depend on."""
    sha256: str
    """Of the annotations, its first digits."""
    size_bytes: int
    num_rows: int

    @property
    def file(self) -> str:
        """The name of the record."""
        return f"{self.unit}.{self.key}.{self.sha256}.{self.size_bytes}.{self.num_rows}{_SUFFIX}"


def short_hash(sha256: str) -> str:
    """Returns the digits of a hash that names hold."""
    return sha256[:_HASH_LENGTH]


def annotation_path(output: str, unit: str) -> str:
    """Returns where the annotations of the unit called `unit` lie in the output folder."""
    return posixpath.join(output, ANNOTATIONS_FOLDER, unit + ".parquet")


def read_commits(output: str) -> dict[str, list[UnitCommit]]:
    """Returns the records of each unit in `output`, those without annotations and those that do not fit them left out.

    It takes two listings, whatever the number of units. A local listing has no sizes: whoever reads annotations checks
    that they are those of the record (`read_annotations`).
    """
    annotations = list_folder(posixpath.join(output, ANNOTATIONS_FOLDER))
    commits: dict[str, list[UnitCommit]] = collections.defaultdict(list)
    for file in sorted(list_folder(posixpath.join(output, COMMITS_FOLDER))):
        commit = _parse(file)
        if commit is not None and _fits(commit, annotations):
            commits[commit.unit].append(commit)
    return dict(commits)


def write_commit(output: str, commit: UnitCommit, outcomes: Mapping[str, int]) -> None:
    """Writes the record that makes the annotations of a unit count; `outcomes` are numbers of rows."""
    content = json.dumps(outcomes, sort_keys=True, separators=(",", ":")).encode()
    write_bytes(posixpath.join(output, COMMITS_FOLDER, commit.file), content)


def delete_commits(output: str, commits: Iterable[UnitCommit]) -> None:
    """Deletes records: before their annotations are replaced, which they could come to fit by chance."""
    delete_files([posixpath.join(output, COMMITS_FOLDER, commit.file) for commit in commits])


def commits_beside(output: str, known: Collection[str]) -> dict[str, UnitCommit]:
    """Returns the records in `output` whose file names are not among `known`, by file name."""
    files = list_folder(posixpath.join(output, COMMITS_FOLDER)).keys() - known
    return {file: commit for file in sorted(files) if (commit := _parse(file)) is not None}


def read_outcomes(output: str, commit: UnitCommit) -> dict[str, int]:
    """Returns the numbers of rows by outcome; empty if the record is still being written."""
    try:
        outcomes: dict[str, int] = json.loads(read_bytes(posixpath.join(output, COMMITS_FOLDER, commit.file)))
    except ValueError:
        return {}
    return outcomes


def read_annotations(path: str, *, sha256: str) -> bytes:
    """Returns the file of annotations at `path`, which has the hash that was committed.

    Raises:
        UserError: they have another.
    """
    content = read_bytes(path)
    if short_hash(hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(f"{path} was changed since it was committed; remove it, and run again: it is made again")
    return content


def _fits(commit: UnitCommit, annotations: Mapping[str, int | None]) -> bool:
    """Returns whether the annotations are there, with the size that was committed where sizes are known."""
    name = commit.unit + ".parquet"
    return name in annotations and annotations[name] in (None, commit.size_bytes)


def _parse(file: str) -> UnitCommit | None:
    parts = file.removesuffix(_SUFFIX).rsplit(".", 4)
    if not file.endswith(_SUFFIX) or len(parts) != 5 or not parts[3].isdigit() or not parts[4].isdigit():
        return None
    return UnitCommit(unit=parts[0], key=parts[1], sha256=parts[2], size_bytes=int(parts[3]), num_rows=int(parts[4]))
