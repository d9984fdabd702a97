"""An earlier set that a new one continues: its threshold, the ids of its classes, and shards that stay the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Mapping
from typing import Any

from pipeline.schema import UserError
from pipeline.shard_format import MANIFEST_NAME, VOCABULARY_NAME
from pipeline.storage.beam_files import copy_file, delete_files, match_paths, read_bytes, read_json
from pipeline.storage.commits import check_format_version


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlierSet:
    """What a new set takes from an earlier one."""

    folder: str
    """Of the earlier set's shards."""
    manifest: Mapping[str, Any]
    vocabulary_path: str
    is_replaced: bool
    """Whether the new set is made in its folder."""
    fingerprint: str
    """A hash of what decides about the new set: threshold, ids of the classes, order of the units."""

    @property
    def min_similarity(self) -> float:
        """The threshold."""
        return float(self.manifest["min_similarity"])

    @property
    def units(self) -> tuple[str, ...]:
        """The names of the units, in the order of the shards."""
        return tuple(shard["unit"] for shard in self.manifest["shards"])


def read_earlier_set(folder: str, *, output: str, snapshot: str) -> EarlierSet:
    """Returns the finished set in `folder`.

    If that is the folder `output` of the new set, its manifest and vocabulary are copied to `snapshot` first: they are
    replaced while the new set is made, and a run that was killed goes on from the copies.

    Raises:
        UserError: there is no finished set.
    """
    source = folder
    is_replaced = posixpath.normpath(folder) == posixpath.normpath(output)
    if is_replaced:
        if read_json(posixpath.join(folder, MANIFEST_NAME)) is not None:
            for name in (VOCABULARY_NAME, MANIFEST_NAME):  # the manifest last: without it the copies do not count
                copy_file(posixpath.join(folder, name), posixpath.join(snapshot, name))
        source = snapshot
    manifest = read_json(posixpath.join(source, MANIFEST_NAME))
    if manifest is None:
        raise UserError(
            f"--from-set {folder} holds no finished set ({MANIFEST_NAME} is missing); give the folder of a set that "
            "python -m pipeline.build_i2e finished, or leave the option out"
        )
    path = posixpath.join(source, MANIFEST_NAME)
    check_format_version(path, manifest)
    if manifest.get("kind") != "i2e" or any("unit" not in shard for shard in manifest["shards"]):
        raise UserError(
            f"{path} is not that of an Image-to-Entities set of this version; build that set again, or leave "
            "--from-set out"
        )
    vocabulary_path = posixpath.join(source, VOCABULARY_NAME)
    decisive = [manifest["min_similarity"], [shard["unit"] for shard in manifest["shards"]]]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    digest.update(read_bytes(vocabulary_path))
    return EarlierSet(
        folder=folder,
        manifest=manifest,
        vocabulary_path=vocabulary_path,
        is_replaced=is_replaced,
        fingerprint=digest.hexdigest(),
    )


def forget_snapshot(snapshot: str) -> None:
    """Deletes the copies that `read_earlier_set` made, the manifest first."""
    delete_files(match_paths([posixpath.join(snapshot, MANIFEST_NAME)]))
    delete_files(match_paths([posixpath.join(snapshot, "*")]))
