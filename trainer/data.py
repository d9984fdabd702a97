"""Batches from a set: global shuffle over the shards' indices, and a state that resumes exactly."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import tokenizers
from PIL import Image

from pipeline.shard_format import ImageSet, ShardReader, open_set
from trainer.configs.base import Experiment, UserError
from trainer.encoder import Preprocessing
from trainer.tokenizer import train_tokenizer

_TOKENIZER_TEXTS = 1_000_000  # texts that the tokenizer is trained on, at most


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A set opened for one experiment."""

    image_set: ImageSet
    labelled: bool
    entity_ids: tuple[str, ...]  # by class id
    texts: tuple[tuple[str, str], ...]  # by class id: name, and "name, description"
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.entity_ids)


def open_corpus(directory: str, experiment: Experiment) -> Corpus:
    """Returns the set in `directory`.

    Raises:
        UserError: it is no set, too small for one batch, or has no labels where the experiment needs them.
    """
    try:
        image_set = open_set(directory)
    except json.JSONDecodeError as error:
        raise UserError(f"{directory} has a manifest or vocabulary that is no JSON ({error}); build it again") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    try:
        # A shard that is cut or lacks its index is told now, and not in the middle of training.
        for path in image_set.shard_paths:
            ShardReader(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is damaged ({error}); build the set again") from None
    manifest = image_set.manifest
    labelled = manifest.get("kind") == "i2e"
    if experiment.classifies and not (labelled and image_set.vocabulary):
        raise UserError(
            f"config {experiment.name} learns classes, but {directory} holds raw pairs without entities; "
            "give an I2E set as --data, or set loss.classification_weight=0"
        )
    if image_set.num_records < experiment.data.batch_size:
        raise UserError(
            f"{directory} holds {image_set.num_records} images, fewer than data.batch_size "
            f"{experiment.data.batch_size}; set a smaller batch or build a larger set"
        )
    texts = tuple((e.name, f"{e.name}, {e.description}" if e.description else e.name) for e in image_set.vocabulary)
    content = {
        "shards": [(shard["file"], shard["num_records"], shard.get("sha256")) for shard in manifest["shards"]],
        "classes": [(e.class_id, e.entity_id, e.name, e.description) for e in image_set.vocabulary],
    }
    return Corpus(
        image_set=image_set,
        labelled=labelled,
        entity_ids=tuple(e.entity_id for e in image_set.vocabulary),
        texts=texts,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def make_tokenizer(corpus: Corpus, experiment: Experiment) -> tokenizers.Tokenizer:
    """Returns a tokenizer trained on the texts that the experiment reads: entity texts, or the pairs' own."""
    texts: Iterator[str]
    if corpus.labelled:
        texts = (text for _, text in corpus.texts)
    else:
        readers = (ShardReader(path) for path in corpus.image_set.shard_paths)
        texts = (reader[i].text for reader in readers for i in range(len(reader)))
    config = experiment.text
    return train_tokenizer(itertools.islice(texts, _TOKENIZER_TEXTS), config.vocabulary_size, config.context_length)


class Records:
    """All records of a set as one sequence, for Grain; picklable."""

    def __init__(self, image_set: ImageSet):
        self._readers = [ShardReader(path) for path in image_set.shard_paths]
        self._ends = list(itertools.accumulate(len(reader) for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> Any:
        shard = bisect.bisect_right(self._ends, position)
        return self._readers[shard][position - (self._ends[shard - 1] if shard else 0)]


@dataclasses.dataclass(frozen=True)
class Example:
    """From a record to the arrays of one training example; a picture of several entities gets one of them by chance."""

    preprocessing: Preprocessing
    labelled: bool
    texts: tuple[tuple[str, str], ...]
    description_probability: float
    tokenizer: tokenizers.Tokenizer | None

    def __call__(self, record: Any, random: np.random.Generator) -> dict[str, np.ndarray]:
        with Image.open(io.BytesIO(record.image)) as picture:
            example: dict[str, Any] = {"pixels": self.preprocessing.pixels(picture)}
        chance = random.random(2)
        if self.labelled:
            class_id = record.class_ids[int(chance[0] * len(record.class_ids))]
            text = self.texts[class_id][int(chance[1] < self.description_probability)]
            example["class_ids"] = example["groups"] = np.int32(class_id)
        else:
            text = record.text
            example["groups"] = np.int32(zlib.crc32(" ".join(text.lower().split()).encode()) & 0x7FFFFFFF)
        if self.tokenizer is not None:
            example["tokens"] = np.asarray(self.tokenizer.encode(text).ids, np.int32)
        return example


def make_example(
    corpus: Corpus, experiment: Experiment, preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer | None
) -> Example:
    """Returns what turns a record of `corpus` into arrays."""
    return Example(
        preprocessing=preprocessing,
        labelled=corpus.labelled,
        texts=corpus.texts,
        description_probability=experiment.data.description_probability,
        tokenizer=tokenizer,
    )


def batches(
    corpus: Corpus, experiment: Experiment, example: Example, process: int, num_processes: int
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of each batch, a dict of arrays.

    Step k reads the records k * B to (k + 1) * B of one global order, whatever the number of processes: so the
    iterator's state is the step, and a run resumes on another number of hosts with nothing lost or repeated.
    """
    config = experiment.data
    records = grain.MapDataset.source(Records(corpus.image_set)).seed(experiment.seed).shuffle().repeat()
    rows = records.random_map(example).batch(config.batch_size // num_processes)[process::num_processes]
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(1, config.prefetch))
    if config.workers == 0:
        return iter(rows.to_iter_dataset(options))
    workers = grain.MultiprocessingOptions(num_workers=config.workers)
    return iter(rows.to_iter_dataset(options).mp_prefetch(workers))


def first_images(corpus: Corpus, example: Example, count: int) -> np.ndarray:
    """Returns normalised float32 [count, S, S, 3], records spread evenly over the set."""
    records = Records(corpus.image_set)
    random = np.random.default_rng(0)
    chosen = np.linspace(0, len(records) - 1, count).astype(int)
    pixels = np.stack([example(records[int(i)], random)["pixels"] for i in chosen])
    return example.preprocessing.normalise(pixels)
