"""One record of a set as the arrays of a training example: pixels, class, tokens of a text, and a weight."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from pipeline.schema import LabelledImage
from pipeline.storage.disk import one_line
from trainer.configs.base import Data
from trainer.encoder import Preprocessing
from trainer.training_pixels import training_pixels

MOST_ENTITIES = 32  # ours: of an image, in a set whose manifest does not state it
SIMILARITIES = "similarities"  # the column of entity sets that has a value for each entity of an image
_LARGEST_WEIGHT = 1e30  # ours: the sum of a batch is then a float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """Turns a record into the arrays of one training example.

    Of an image's entities, one is drawn at random, and of a set of entities the kind of text: its name, its name and
    description, or the image's alt-text.

    Raises:
        ValueError: the image cannot be read, its classes are not classes of the set, or it has no weight.
    """

    preprocessing: Preprocessing
    labelled: bool
    texts: Sequence[tuple[str, str]]
    """By class id: name, and "name, description". Each worker process gets a pickled copy."""
    data: Data
    """Says how often each kind of text is drawn, and how examples are weighted."""
    tokenizer: tokenizers.Tokenizer | None
    most_entities: int = MOST_ENTITIES
    """Of an image of the set."""

    def __call__(self, record: LabelledImage, random: np.random.Generator) -> dict[str, np.ndarray]:
        self._check_classes(record)
        weights = self._weights(record)
        try:
            example: dict[str, Any] = {"pixels": training_pixels(record.image, self.preprocessing)}
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"image {record.image_id} cannot be read ({one_line(error)})") from error
        chance = random.random(2)
        text, groups, drawn = record.text, list[int](), 0
        if self.labelled:
            drawn = int(chance[0] * len(record.class_ids))
            class_id = record.class_ids[drawn]
            text = self._text(record, class_id, chance[1])
            example["class_ids"] = np.int32(class_id)
            groups = [class_id] + [other for other in record.class_ids if other != class_id]
        if weights:
            example["weights"] = np.float32(weights[drawn])
        if self.tokenizer is not None:
            tokens = example["tokens"] = np.asarray(self.tokenizer.encode(text).ids, np.int32)
            # Texts with the same tokens count as one text.
            groups = groups or [zlib.crc32(tokens.tobytes()) & 0x7FFFFFFF]
        if groups:
            example["text_groups"] = np.int32(groups[0])
            example["image_groups"] = np.asarray(groups + [-1] * (self.most_entities - len(groups)), np.int32)
        return example

    def _text(self, record: LabelledImage, class_id: int, chance: float) -> str:
        """Returns the text of the kind that `chance`, uniform in [0, 1), draws."""
        name, description = self.texts[class_id]
        if chance < self.data.description_probability:
            return description
        is_alt_text = chance < self.data.description_probability + self.data.alt_text_probability
        return record.text if is_alt_text else name

    def _weights(self, record: LabelledImage) -> tuple[float, ...]:
        """Returns the weight of each entity of the record, or its own; empty where all examples weigh the same.

        Raises:
            ValueError: there is none, or it is negative or not finite.
        """
        column = self.data.weight_column
        if not column:
            return ()
        if self.labelled and column == SIMILARITIES:
            return tuple(self._weight(record, value) for value in record.similarities)
        return (self._weight(record, dict(record.fields).get(column)),) * max(1, len(record.class_ids))

    def _weight(self, record: LabelledImage, value: float | str | None) -> float:
        weight = math.nan
        if value is not None:
            try:
                weight = float(value)
                if self.data.weight_mapping == "exponential":
                    weight = math.exp(weight / self.data.weight_temperature)
            except (ValueError, OverflowError):
                weight = math.nan
        if not 0 <= weight <= _LARGEST_WEIGHT:
            raise ValueError(
                f"image {record.image_id} has the value {value!r} in the column {self.data.weight_column}, of which "
                f"data.weight_mapping={self.data.weight_mapping} makes no weight of 0 to {_LARGEST_WEIGHT:g}"
            )
        return weight

    def _check_classes(self, record: LabelledImage) -> None:
        if not self.labelled:
            return
        if not 1 <= len(record.class_ids) <= self.most_entities:
            raise ValueError(
                f"image {record.image_id} has {len(record.class_ids)} classes, but images of the set have 1 to "
                f"{self.most_entities}"
            )
        for class_id in record.class_ids:
            if not 0 <= class_id < len(self.texts):
                raise ValueError(
                    f"image {record.image_id} has the class id {class_id}, but those of the set are 0 to "
                    f"{len(self.texts) - 1}"
                )
