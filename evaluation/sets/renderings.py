"""The demo's evaluation pictures, one row each: what is shown, in which rendering, and what training never saw."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from evaluation.sets.images import ImageSet
from evaluation.sets.parquet import read_table
from pipeline.schema import UserError

COLUMNS = (
    "image_id",
    "image",
    "entity_id",
    "kind",
    "rendering",
    "family",
    "heldout_rendering",
    "heldout_entity",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renderings:
    """Pictures in ascending order of `image_id`; all fields have one entry per picture."""

    image_ids: np.ndarray  # unicode [n], unique
    images: Sequence[bytes]  # encoded
    entity_ids: np.ndarray  # unicode [n]
    kinds: np.ndarray  # unicode [n]: emoji, flag or logo
    renderings: np.ndarray  # unicode [n]: the package that drew it
    families: np.ndarray  # unicode [n]: renderings that are near-duplicates share one
    heldout_rendering: np.ndarray  # bool [n]: training saw no picture of this rendering
    heldout_entity: np.ndarray  # bool [n]: training saw no picture of this entity
    data_hash: str  # SHA-256 of ids and image bytes

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_set(self, name: str) -> ImageSet:
        """Returns the pictures as a set to embed; transparent parts are put on white."""
        return ImageSet(
            name=name,
            ids=self.image_ids,
            read=self.images.__getitem__,
            fingerprint=self.data_hash,
            on_white=True,
        )


def read_renderings(path: str | os.PathLike[str]) -> Renderings:
    """Returns the pictures of an evaluation Parquet file, sorted by id.

    Raises:
        UserError: the file is missing or not Parquet, a column is missing, it holds no rows, or an id is not unique.
    """
    table = read_table(path, COLUMNS, remedy="make it with python -m pipeline.demo.corpus")
    if table.num_rows == 0:
        raise UserError(f"{path} holds no pictures, at least 1 is needed; make it again")
    table = table.sort_by("image_id")
    image_ids = _strings(table, "image_id")
    repeated = image_ids[1:][image_ids[1:] == image_ids[:-1]]
    if len(repeated):
        raise UserError(f"{path} has the duplicate image_id {repeated[0]}; ids must be unique")
    images = table["image"].to_pylist()
    digest = hashlib.sha256()
    for image_id, image in zip(image_ids, images, strict=True):
        if image is None:
            raise UserError(f"{path}: picture {image_id} is missing; a benchmark leaves none out")
        digest.update(f"{image_id}\0{len(image)}\0".encode() + image)
    return Renderings(
        image_ids=image_ids,
        images=images,
        entity_ids=_strings(table, "entity_id"),
        kinds=_strings(table, "kind"),
        renderings=_strings(table, "rendering"),
        families=_strings(table, "family"),
        heldout_rendering=np.array(table["heldout_rendering"].to_pylist(), bool),
        heldout_entity=np.array(table["heldout_entity"].to_pylist(), bool),
        data_hash=digest.hexdigest(),
    )


def _strings(table: pa.Table, name: str) -> np.ndarray:
    values = table[name].to_pylist()
    if None in values:
        raise UserError(f"column {name!r} has an empty value in row {values.index(None)}; every picture needs one")
    return np.array(values, dtype=np.str_)
