"""The tables of a set on disk: annotations, ledger, manifest and vocabulary, read without loading a whole set.

Neither Beam nor TensorFlow is imported here, so that a look at one row takes no longer than reading it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import UserError, VocabularyEntry
from pipeline.shard_format import FORMAT_VERSION, MANIFEST_NAME, VOCABULARY_NAME

_SUFFIX = ".parquet"
_REBUILD = "remove it, and run python -m pipeline.build_i2e again: only what is missing is made"


class ThresholdSource(enum.StrEnum):
    """Where the threshold of the similarity comes from."""

    GIVEN = "given"
    SHARE = "share"
    EARLIER_SET = "earlier_set"


def threshold_source(manifest: Mapping[str, Any]) -> ThresholdSource:
    """Returns where the threshold of a finished set comes from."""
    if manifest["config"]["assemble"]["select"]["min_similarity"] is not None:
        return ThresholdSource.GIVEN
    return ThresholdSource.EARLIER_SET if manifest.get("continues") else ThresholdSource.SHARE


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetFiles:
    """Where the tables of a set are; annotations and ledger have one file per unit of input, with one row per row."""

    directory: str
    names: tuple[str, ...]
    """Names of the units of input: in the order of the shards, or sorted while the set is unfinished."""
    manifest: dict[str, Any] | None
    """What `manifest.json` holds; None while the set is unfinished, or when its last run ended with an error."""
    has_ledger: bool
    """False: the set was never assembled, or its assembly was interrupted."""

    def annotations(self, name: str) -> str:
        """Returns the path of the annotations of the unit `name`."""
        return os.path.join(self.directory, "annotations", name + _SUFFIX)

    def ledger(self, name: str) -> str:
        """Returns the path of the ledger of the unit `name`."""
        return os.path.join(self.directory, "ledger", name + _SUFFIX)

    def vocabulary(self, entity_ids: Iterable[str] | None = None) -> dict[str, VocabularyEntry]:
        """Returns the classes of the set by entity id; only those of `entity_ids` if given.

        Raises:
            UserError: a line of the vocabulary is not one that this program wrote.
        """
        path = os.path.join(self.directory, VOCABULARY_NAME)
        # A vocabulary may have millions of lines: those that cannot be meant are not decoded.
        wanted = None if entity_ids is None else [json.dumps(one, ensure_ascii=False) for one in set(entity_ids)]
        entries: dict[str, VocabularyEntry] = {}
        if not os.path.exists(path):
            return entries
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if wanted is not None and not any(one in line for one in wanted):
                    continue
                try:
                    entry = VocabularyEntry(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise UserError(f"{path}, line {number}, cannot be read ({error}); {_REBUILD}") from None
                entries[entry.entity_id] = entry
        return entries


def open_set_files(directory: str) -> SetFiles:
    """Returns the tables of the set in `directory`, which may be unfinished.

    Raises:
        UserError: there is no set, its annotations are gone, or it is of another format version.
    """
    if "://" in directory:
        raise UserError(
            f"--data {directory}: the set must lie on a local disk; copy its folder, and give the copy's path"
        )
    if not os.path.isdir(directory):
        what = "is a file" if os.path.exists(directory) else "does not exist"
        raise UserError(f"--data {directory} {what}; give the folder that python -m pipeline.build_i2e wrote")
    manifest = _read_manifest(directory)
    annotated, assembled = (_names_in(os.path.join(directory, folder)) for folder in ("annotations", "ledger"))
    if not annotated:
        if manifest is None and not assembled:
            raise UserError(
                f"--data {directory} holds no set ({MANIFEST_NAME} and annotations/*.parquet are missing); give the "
                "folder that python -m pipeline.build_i2e wrote"
            )
        raise UserError(
            f"the annotations of the set are gone: {directory}/annotations has no .parquet file; run python -m "
            "pipeline.build_i2e again, which makes them again"
        )
    # The folder may hold files of an earlier run: the manifest decides, and until it is there the ledger.
    names = sorted(assembled or annotated)
    if manifest is not None:
        names = [shard.get("unit") for shard in manifest["shards"]]
        if None in names:
            raise UserError(
                f"{directory}/{MANIFEST_NAME} names no units of its shards: it was written by another version of this "
                "program; run python -m pipeline.build_i2e again, which assembles the set again"
            )
    for folder, found in (("annotations", annotated), ("ledger", assembled)):
        missing = [name for name in names if name not in found]
        if missing and (folder == "annotations" or manifest is not None):
            raise UserError(
                f"{directory}/{folder} lacks {len(missing)} of {len(names)} files, {missing[0]}{_SUFFIX} first; run "
                "python -m pipeline.build_i2e again, which makes them again"
            )
    return SetFiles(
        directory=directory,
        names=tuple(names),
        manifest=manifest,
        has_ledger=bool(assembled),
    )


@contextlib.contextmanager
def open_table(path: str) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run python -m pipeline.build_i2e again, which makes it again") from None
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as Parquet ({words}); {_REBUILD}") from error


def check_columns(file: pq.ParquetFile, path: str, columns: Sequence[str]) -> None:
    """Checks that `file`, opened from `path`, has the top-level `columns`.

    Raises:
        UserError: it lacks one.
    """
    lacking = [name for name in columns if name not in file.schema_arrow.names]
    if lacking:
        raise UserError(
            f"{path} has no column {lacking[0]!r}: it was written by another version of this program; run python -m "
            "pipeline.build_i2e again, which assembles the set again"
        )


def _read_manifest(directory: str) -> dict[str, Any] | None:
    path = os.path.join(directory, MANIFEST_NAME)
    try:
        with open(path, "rb") as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {_REBUILD}") from None
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind != "i2e":
        raise UserError(
            f"{path} is not that of an Image-to-Entities set (kind {kind!r}, 'i2e' is needed); give another --data"
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise UserError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; build the set again"
        )
    return dict(manifest)


def _names_in(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    return {name.removesuffix(_SUFFIX) for name in os.listdir(folder) if name.endswith(_SUFFIX)}
