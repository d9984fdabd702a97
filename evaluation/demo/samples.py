"""Examples of what the pipeline kept and dropped, with their pictures, for the report."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from evaluation.sets.parquet import read_table

_LEDGER_COLUMNS = ("image_id", "shard", "row", "outcome", "stage", "reason", "entity_ids")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One input row, its outcome, and its picture; `image` is None where the shard holds none that is readable."""

    image_id: str
    text: str
    outcome: str
    stage: str
    reason: str
    entity_ids: tuple[str, ...]
    image: bytes | None


def read_samples(i2e_dir: str, shards_dir: str, *, num_kept: int, num_per_reason: int) -> list[Sample]:
    """Returns examples spread evenly over the ledger: kept ones first, then by stage and reason.

    Args:
        i2e_dir: the set, with its ledger and annotations.
        shards_dir: where the tars lie that the ledger names.
        num_kept: examples of kept rows.
        num_per_reason: examples of each reason.

    Raises:
        UserError: ledger or annotations are missing.
    """
    remedy = "make it with python -m pipeline.build_i2e"
    rows = read_table(os.path.join(i2e_dir, "ledger"), _LEDGER_COLUMNS, remedy=remedy).to_pylist()
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["image_id"]):
        kept = row["outcome"] == "kept"
        groups[row["outcome"], "" if kept else row["stage"] or "", "" if kept else row["reason"] or ""].append(row)
    picked: list[dict[str, Any]] = []
    for key in sorted(groups, key=lambda key: (key[0] != "kept", key)):
        group, most = groups[key], num_kept if key[0] == "kept" else num_per_reason
        picked += [group[number * len(group) // most] for number in range(most)] if len(group) > most else group
    wanted = {row["image_id"] for row in picked}
    table = read_table(os.path.join(i2e_dir, "annotations"), ("image_id", "text"), remedy=remedy)
    texts = {
        image_id: text
        for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        if image_id in wanted
    }
    images = _read_images(picked, shards_dir)
    return [
        Sample(
            image_id=row["image_id"],
            text=texts.get(row["image_id"]) or "",
            outcome=row["outcome"],
            stage=row["stage"] or "",
            reason=row["reason"] or "",
            entity_ids=tuple(row["entity_ids"] or ()),
            image=images.get(row["image_id"]),
        )
        for row in picked
    ]


def _read_images(rows: Iterable[dict[str, Any]], shards_dir: str) -> dict[str, bytes]:
    """Returns the encoded pictures of `rows`; those whose tar has gone are left out, and the report shows a gap."""
    by_shard: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_shard[os.path.join(shards_dir, os.path.basename(row["shard"]))].add(row["image_id"])
    images = {}
    for shard, image_ids in by_shard.items():
        if not os.path.isfile(shard):
            continue
        try:
            with tarfile.open(shard) as archive:
                for member in archive:
                    key, suffix = os.path.splitext(member.name)
                    if key in image_ids and suffix.lower() in _IMAGE_SUFFIXES:
                        file = archive.extractfile(member)
                        if file is not None:
                            images[key] = file.read()
        except tarfile.ReadError:
            continue  # a shard cut short is the pipeline's to report; what was read before the cut is shown
    return images
