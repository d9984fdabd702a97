"""Batches from a set, in one global order over the shards' indices that a run can enter at any step."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import io
import itertools
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
import tokenizers
from absl import flags
from PIL import Image

from pipeline.schema import UserError, entity_text
from pipeline.shard_format import I2ESet, ShardReader, open_set
from trainer.configs.base import Experiment
from trainer.encoder import Preprocessing
from trainer.tokenizer import train_tokenizer

_TOKENIZER_TEXTS = 200_000  # at most so many texts, spread evenly over the set, train the tokenizer
_IMAGE_GROUPS = 8  # ours: at most so many entities of an image are kept from being its negatives
_CHUNK_IMAGES = 32  # ours: at most so many images are decoded by a thread, and sent by a process, at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A set opened for one experiment."""

    image_set: I2ESet
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
        UserError: it is not a set, is damaged, is smaller than one batch, or lacks labels that the experiment needs.
    """
    try:
        image_set = open_set(directory)
        stated = image_set.num_records
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{directory}: manifest.json or vocabulary.jsonl is not valid JSON ({error}); build the set again"
        ) from None
    except KeyError as error:
        raise UserError(
            f"{directory}: manifest.json or vocabulary.jsonl lacks the field {error}; build the set again"
        ) from None
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{directory}: manifest.json or vocabulary.jsonl has an unknown field or a value of a wrong type "
            f"({error}); build the set again"
        ) from None
    except OSError as error:
        raise UserError(f"{directory} cannot be read ({error}); choose another --data, or repair it") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    try:
        # A truncated shard or a missing index is reported now, not in the middle of training.
        records = Records(image_set)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is damaged ({error}); build the set again") from None
    if len(records) != stated:
        raise UserError(f"{directory} holds {len(records)} images, but its manifest says {stated}; build the set again")
    manifest = image_set.manifest
    labelled = manifest.get("kind") == "i2e"
    if experiment.classifies and not (labelled and image_set.vocabulary):
        raise UserError(
            f"config {experiment.name} learns classes, but {directory} holds raw pairs without entities; "
            "give an I2E set as --data, or add --set loss.classification_weight=0"
        )
    if image_set.num_records < experiment.data.batch_size:
        raise UserError(
            f"{directory} holds {image_set.num_records} images, fewer than data.batch_size "
            f"{experiment.data.batch_size}; set a smaller batch or build a larger set"
        )
    if labelled and [e.class_id for e in image_set.vocabulary] != list(range(manifest["num_classes"])):
        raise UserError(
            f"{directory}/vocabulary.jsonl has {len(image_set.vocabulary)} lines; they must be the classes 0 to "
            f"{manifest['num_classes'] - 1} of the manifest, in order; build the set again"
        )
    if experiment.classifies and len(image_set.vocabulary) < 2:
        raise UserError(
            f"config {experiment.name} learns to tell classes apart, but {directory} has only one; give a set of at "
            "least two entities as --data, or add --set loss.classification_weight=0"
        )
    texts = tuple((entity_text(e.name, ""), entity_text(e.name, e.description)) for e in image_set.vocabulary)
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
    """Returns a tokenizer trained on texts that the experiment reads: entity texts, or the pairs' own."""
    records = Records(corpus.image_set)
    total = len(corpus.texts) if corpus.labelled else len(records)
    count = min(total, _TOKENIZER_TEXTS)
    chosen = (number * total // count for number in range(count))
    texts = (corpus.texts[i][1] if corpus.labelled else records[i].text for i in chosen)
    return train_tokenizer(texts, experiment.text.vocabulary_size, experiment.text.context_length)


class Records:
    """All records of a set as one sequence, which Grain can pickle.

    Raises:
        ValueError: a shard is damaged.
    """

    def __init__(self, image_set: I2ESet):
        self._readers = [ShardReader(path) for path in image_set.shard_paths]
        self._ends = list(itertools.accumulate(len(reader) for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> Any:
        shard = bisect.bisect_right(self._ends, position)
        return self._readers[shard][position - (self._ends[shard - 1] if shard else 0)]


@dataclasses.dataclass(frozen=True)
class Example:
    """Turns a record into the arrays of one training example; of an image's entities, one is drawn at random.

    Raises:
        UserError: the image cannot be read.
    """

    preprocessing: Preprocessing
    labelled: bool
    texts: tuple[tuple[str, str], ...]
    description_probability: float
    tokenizer: tokenizers.Tokenizer | None

    def __call__(self, record: Any, random: np.random.Generator) -> dict[str, np.ndarray]:
        try:
            with Image.open(io.BytesIO(record.image)) as image:
                example: dict[str, Any] = {"pixels": self.preprocessing.pixels(image)}
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"image {record.image_id} of the set cannot be read ({error}); build the set again"
            ) from error
        chance = random.random(2)
        text = record.text
        if self.labelled:
            class_id = record.class_ids[int(chance[0] * len(record.class_ids))]
            text = self.texts[class_id][int(chance[1] < self.description_probability)]
            example["class_ids"] = np.int32(class_id)
        if self.tokenizer is not None:
            tokens = example["tokens"] = np.asarray(self.tokenizer.encode(text).ids, np.int32)
            if self.labelled:
                groups = [class_id] + [other for other in record.class_ids if other != class_id]
            else:
                groups = [zlib.crc32(tokens.tobytes()) & 0x7FFFFFFF]  # texts with the same tokens count as one text
            example["text_groups"] = np.int32(groups[0])
            example["image_groups"] = np.asarray((groups + [-1] * _IMAGE_GROUPS)[:_IMAGE_GROUPS], np.int32)
        return example


def make_example(
    corpus: Corpus, experiment: Experiment, preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer | None
) -> Example:
    """Returns the function that turns a record of `corpus` into arrays."""
    return Example(
        preprocessing=preprocessing,
        labelled=corpus.labelled,
        texts=corpus.texts,
        description_probability=experiment.data.description_probability,
        tokenizer=tokenizer,
    )


def batches(
    corpus: Corpus, experiment: Experiment, example: Example, process: int, num_processes: int, first_step: int = 0
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of each batch, a dict of arrays; close it after use.

    Step k reads the records k * B to (k + 1) * B - 1 of one global order, whatever the number of processes, workers and
    threads. So the step is all that a run must keep, and it can resume with another number of hosts: no record is lost
    or repeated. `first_step` is the number of steps taken before.
    """
    config = experiment.data
    rows = config.batch_size // num_processes
    chunk = math.gcd(rows, _CHUNK_IMAGES)
    records = grain.MapDataset.source(Records(corpus.image_set)).seed(experiment.seed).shuffle().repeat()
    chunks = _ChunksOfProcess(
        records.random_map(example).batch(chunk), rows // chunk, process, num_processes, first_step
    )
    # Grain counts chunks, per worker. With whole batches, one thread would decode each, and too many would wait.
    waiting = math.ceil(config.prefetch * (rows // chunk) / max(1, config.workers))
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(waiting, config.threads))
    flags.FLAGS.mark_as_parsed()  # Grain reads its own flags before it starts workers, and no command here parses any
    workers = grain.MultiprocessingOptions(num_workers=config.workers)
    return iter(chunks.to_iter_dataset(options).mp_prefetch(workers).batch(rows // chunk, batch_fn=_joined))


class _ChunksOfProcess(grain.MapDataset):  # type: ignore[misc]  # grain has no types
    """The chunks of one process, out of all chunks in global order: `per_batch` of each batch, from a step on."""

    def __init__(self, chunks: grain.MapDataset, per_batch: int, process: int, num_processes: int, first_step: int):
        super().__init__(chunks)
        self._per_batch, self._process = per_batch, process
        self._num_processes, self._first_step = num_processes, first_step

    def __len__(self) -> int:
        return len(self._parent) // self._num_processes

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return self.slice(index)
        step, number = divmod(index, self._per_batch)
        part = (self._first_step + step) * self._num_processes + self._process
        return self._parent[part * self._per_batch + number]


def _joined(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def first_images(corpus: Corpus, example: Example, count: int) -> np.ndarray:
    """Returns normalised images float32 [count, S, S, 3] of records that are spread evenly over the set."""
    records = Records(corpus.image_set)
    random = np.random.default_rng(0)
    chosen = np.linspace(0, len(records) - 1, count).astype(int)
    pixels = np.stack([example(records[int(i)], random)["pixels"] for i in chosen])
    images: np.ndarray = example.preprocessing.normalise(pixels)
    return images
