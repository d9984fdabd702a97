"""Sample pictures of a set: of some entities, and of each reason for which rows were not kept.

Which ones is decided by hashes, so that the same set gives the same samples. Rows that were not kept have no picture in
the set: theirs are read from the input again. Samples come from few input shards, so that few are read.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.config import MembersConfig
from pipeline.images.decode import decode_image, on_white
from pipeline.report.card_counts import KEPT, Batch
from pipeline.report.set_files import SetFiles
from pipeline.schema import ImageText, UserError
from pipeline.shard_format import ShardReader
from pipeline.sources.read import read_shard
from pipeline.storage.disk import one_line

_SIDE_PX = 112
_JPEG_QUALITY = 82
_TEXT_CHARS_MAX = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A row that stands for others."""

    image_id: str
    shard: str
    """Name of its unit."""
    row: int
    """Of its unit, from 0."""
    file: str
    """Name of the input file that it is from."""
    row_of_file: int
    position: int | None
    """Of its record in the set's shard; None for a row that was not kept."""
    text: str
    links: tuple[tuple[str, str, float | None], ...]
    """(name in the text, entity id, similarity) of each mention that was linked."""
    names: tuple[str, ...]
    """Names in the text that were not linked."""


class Samples:
    """Collects samples from batches that come shard by shard, in the order of `shards_in_order`.

    Args:
        entity_ids: the entities of which pictures are wanted.
        per_group: the most samples of an entity or reason.
        per_shard: the most of them from one input shard.
    """

    def __init__(self, entity_ids: Sequence[str], *, per_group: int, per_shard: int):
        self._entity_ids = pa.array(list(entity_ids), pa.string())
        self._per_group = per_group
        self._per_shard = per_shard
        self._from_shard: collections.Counter[tuple[str, ...]] = collections.Counter()
        self.of_entity: dict[str, list[Sample]] = {one: [] for one in entity_ids}
        self.of_reason: dict[tuple[str, str, str], list[Sample]] = {}
        """(outcome, stage, reason) -> samples."""

    def add(self, batch: Batch) -> None:
        """Takes what is still wanted from a batch."""
        ledger = batch.ledger
        outcomes = ledger.column("outcome")
        ends = ledger.select(["outcome", "stage", "reason"]).filter(pc.not_equal(outcomes, KEPT))
        for end in sorted({tuple(row.values()) for row in ends.group_by(ends.column_names).aggregate([]).to_pylist()}):
            outcome, stage, reason = end
            mask = pc.and_(
                pc.equal(outcomes, outcome),
                pc.and_(pc.equal(ledger.column("stage"), stage), pc.equal(ledger.column("reason"), reason)),
            )
            self._take(batch, self.of_reason.setdefault((outcome, stage, reason), []), mask, end)
        entities = ledger.column("entity_ids").combine_chunks()
        flat, rows = pc.list_flatten(entities), pc.list_parent_indices(entities)
        wanted = pc.is_in(flat, value_set=self._entity_ids)
        flat, rows = flat.filter(wanted), rows.filter(wanted).to_numpy(zero_copy_only=False)
        for entity_id in flat.unique().to_pylist():
            mask = np.zeros(len(ledger), bool)
            mask[rows[pc.equal(flat, entity_id).to_numpy(zero_copy_only=False)]] = True
            self._take(batch, self.of_entity[entity_id], pa.array(mask), (entity_id,))

    def _take(self, batch: Batch, group: list[Sample], mask: Any, key: tuple[str, ...]) -> None:
        room = min(self._per_group - len(group), self._per_shard - self._from_shard[(batch.shard, *key)])
        if room <= 0:
            return
        rows = pc.indices_nonzero(mask).to_pylist()
        ids = batch.ledger.column("image_id")
        rows.sort(key=lambda row: hash_of(f"{ids[row].as_py()}/{batch.first_row + row}"))
        chosen = rows[:room]
        self._from_shard[(batch.shard, *key)] += len(chosen)
        group += [_sample(batch, row) for row in chosen]


def shards_in_order(names: Iterable[str]) -> list[str]:
    """Returns the names of input shards in an order that has nothing to do with their content."""
    return sorted(names, key=hash_of)


def hash_of(text: str) -> bytes:
    """Returns a hash that is the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def thumbnails(
    files: SetFiles, samples: Iterable[Sample], input_folder: str | None
) -> tuple[dict[Any, str], list[str]]:
    """Returns (shard, row) -> the picture as a data URI, and notes on the inputs that could not be read.

    Rows whose picture cannot be shown are left out.

    Args:
        files: the set, with its manifest.
        samples: whose pictures are wanted.
        input_folder: where the input shards lie now; None: where the manifest says.
    """
    assert files.manifest is not None
    shards = {one["unit"]: one["file"] for one in files.manifest["shards"]}
    inputs = {one["file"]: one["path"] for one in files.manifest["inputs"]}
    kept: dict[str, dict[int, Sample]] = collections.defaultdict(dict)
    rejected: dict[str, dict[int, Sample]] = collections.defaultdict(dict)
    for sample in samples:
        if sample.position is not None:
            kept[sample.shard][sample.row] = sample
        else:
            rejected[sample.file][sample.row_of_file] = sample
    found: dict[Any, str] = {}
    for name, by_row in kept.items():
        found |= _of_kept(os.path.join(files.directory, shards[name]), list(by_row.values()))
    errors = []
    members = MembersConfig(**files.manifest.get("config", {}).get("annotate", {}).get("members", {}))
    for file, by_row in rejected.items():
        path = inputs[file] if input_folder is None else os.path.join(input_folder, file)
        images, error = _of_input(path, set(by_row), members)
        errors += [error] if error else []
        for row, image in images.items():
            if uri := data_uri(image):
                found[by_row[row].shard, by_row[row].row] = uri
    if not errors:
        return found, []
    return found, [
        f"no pictures of rows that were not kept from {len(errors)} of {len(rejected)} input files: {errors[0]}; or "
        "give --input-folder"
    ]


def data_uri(encoded: bytes) -> str | None:
    """Returns the picture as a small JPEG in a data URI; None if it cannot be decoded.

    Pictures are always encoded again, so that nothing but pixels reaches the page.
    """
    try:
        picture = on_white(decode_image(encoded))
    except ValueError:
        return None
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _of_kept(path: str, samples: Sequence[Sample]) -> dict[Any, str]:
    try:
        reader = ShardReader(path)
        records = {sample: reader[sample.position or 0] for sample in samples}
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run python -m pipeline.build_i2e again, which assembles the set again"
        ) from error
    for sample, record in records.items():
        if record.image_id != sample.image_id:
            raise UserError(
                f"{path} has {record.image_id} where the ledger has {sample.image_id}; run python -m "
                "pipeline.build_i2e again, which assembles the set again"
            )
    return {(sample.shard, sample.row): uri for sample, record in records.items() if (uri := data_uri(record.image))}


def _of_input(path: str, rows: set[int], members: MembersConfig) -> tuple[dict[int, bytes], str]:
    """Returns the pictures of some rows of an input shard, and what is wrong if it cannot be read."""
    images: dict[int, bytes] = {}
    last = max(rows)
    try:
        for row, item in enumerate(read_shard(path, config=members)):
            if row in rows and isinstance(item, ImageText):
                images[row] = item.image
            if row >= last:
                break
    except (UserError, ValueError, OSError) as error:  # Beam has a ValueError for a file system that it lacks
        return images, one_line(error)
    return images, ""


def _sample(batch: Batch, row: int) -> Sample:
    linked = batch.annotations.column("linked")[row].as_py() or []
    links, names = [], []
    for one in linked:
        if one["chosen"] is None:
            names.append(one["surface"])
        else:
            similarity = next((c["similarity"] for c in one["candidates"] if c["entity_id"] == one["chosen"]), None)
            links.append((one["surface"], one["chosen"], similarity))
    outcomes = batch.ledger.column("outcome")
    position = None
    if outcomes[row].as_py() == KEPT:
        position = batch.first_position + (pc.sum(pc.equal(outcomes.slice(0, row), KEPT)).as_py() or 0)
    text = batch.annotations.column("text")[row].as_py() or ""
    return Sample(
        image_id=batch.ledger.column("image_id")[row].as_py(),
        shard=batch.shard,
        row=batch.first_row + row,
        file=batch.ledger.column("shard")[row].as_py(),
        row_of_file=batch.ledger.column("row")[row].as_py(),
        position=position,
        text=text if len(text) <= _TEXT_CHARS_MAX else text[: _TEXT_CHARS_MAX - 1] + "…",
        links=tuple(links),
        names=tuple(names),
    )


def pick_entities(by_count: Sequence[str], number: int) -> list[str]:
    """Returns at most `number` of the entities, which come by falling count: head, a few between by hash, and tail.

    Args:
        by_count: entity ids, those with most images first.
        number: how many to return.
    """
    if len(by_count) <= number:
        return list(by_count)
    third = number // 3
    between = sorted(by_count[third:-third], key=hash_of)[: number - 2 * third]
    chosen = {*by_count[:third], *between, *by_count[-third:]}
    return [one for one in by_count if one in chosen]
