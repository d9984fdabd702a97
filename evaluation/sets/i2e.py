"""An Image-to-Entities set: its pictures with the entities of each, and its vocabulary."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.sets.images import ImageSet
from evaluation.sets.text import read_json_lines
from evaluation.sets.tfds import PreparedSet, read_examples
from pipeline.schema import UserError, entity_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyRow:
    """One line of a set's vocabulary."""

    entity_id: str
    name: str
    description: str
    image_count: int  # training pictures

    @property
    def text(self) -> str:
        """What is embedded where there is no classifier, in one line."""
        return entity_text(self.name, self.description)


def read_vocabulary(path: str | os.PathLike[str]) -> list[VocabularyRow]:
    """Returns the entities of a `vocabulary.jsonl`, in the order of its lines.

    Raises:
        UserError: the file is not there, a line lacks a field, or an id is repeated.
    """
    found: dict[str, VocabularyRow] = {}
    for number, row in read_json_lines(path, remedy="give --option entities.vocabulary=<vocabulary.jsonl>"):
        try:
            one = VocabularyRow(
                entity_id=str(row["entity_id"]),
                name=str(row["name"]),
                description=str(row.get("description") or ""),
                image_count=int(row["image_count"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number} is not an entity ({type(error).__name__}: {error}); entity_id, name, "
                "description and image_count are needed"
            ) from error
        if one.entity_id in found:
            raise UserError(f"{path}, line {number}: {one.entity_id} is a duplicate entity_id; ids must be unique")
        found[one.entity_id] = one
    return list(found.values())


def read_i2e(path: Path, split: str = "train") -> tuple[ImageSet, list[tuple[str, ...]]]:
    """Returns the pictures of an I2E set, with transparent parts on white, and the entity ids of each.

    Args:
        path: a folder that `tfds.builder_from_directory` opens.
        split: as in TFDS; a set has one, "train", even where it is not trained on.

    Raises:
        UserError: it cannot be opened, or lacks a feature or the split.
    """
    # TFDS takes a moment to import.
    import tensorflow_datasets as tfds

    if not (path / "manifest.json").exists():
        raise UserError(f"{path} holds no finished I2E set (manifest.json is missing); build it, or let it finish")
    try:
        prepared = PreparedSet(tfds.builder_from_directory(path))
    except Exception as error:  # TFDS raises many kinds for a folder that is half written
        raise UserError(
            f"{path} cannot be read as an I2E set ({error}); build it again, or name a Parquet file"
        ) from error
    image_ids: list[str] = []
    entity_ids: list[tuple[str, ...]] = []

    def note(example: Mapping[str, Any]) -> int:
        image_ids.append(_text(example["image_id"]))
        entity_ids.append(tuple(_text(one) for one in example["entity_ids"]))
        return 0

    found = read_examples(
        "entities", prepared, split, features=("image_id", "entity_ids"), label_of=note, class_names=("",)
    )
    images = dataclasses.replace(found.images, ids=np.array(image_ids, dtype=np.str_), on_white=True)
    return images, entity_ids


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
