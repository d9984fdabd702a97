"""Batches from a set, in one global order over the shards' indices that a run can enter at any step."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
import tokenizers
from absl import flags

from pipeline.schema import LabelledImage, UserError
from pipeline.shard_format import INDEX_SUFFIX, I2ESet, ShardReader, open_set
from pipeline.storage.disk import one_line
from trainer.class_texts import ClassTexts
from trainer.configs.base import Experiment
from trainer.encoder import Preprocessing
from trainer.example import MOST_ENTITIES, SIMILARITIES, Example
from trainer.store import StoreFiles
from trainer.tokenizer import train_tokenizer

_TOKENIZER_TEXTS = 200_000  # at most so many texts, spread evenly over the set, train the tokenizer
_CHUNK_IMAGES = 32  # ours: at most so many images are decoded by a thread, and sent by a process, at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A set opened for one experiment."""

    image_set: I2ESet
    records: Records
    labelled: bool
    entity_ids: tuple[str, ...]  # by class id
    texts: ClassTexts
    fingerprint: str
    most_entities: int = MOST_ENTITIES  # of an image

    @property
    def num_classes(self) -> int:
        return len(self.entity_ids)


def open_corpus(directory: str, experiment: Experiment) -> Corpus:
    """Returns the set in `directory`.

    Raises:
        UserError: it is not a set, is damaged, is smaller than one batch, or lacks labels that the experiment needs.
    """
    store = StoreFiles(directory) if "://" in directory else None
    try:
        image_set = open_set(store.address if store else directory, store)
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
        records = Records(image_set, store)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} is damaged ({error}); build the set again") from None
    if len(records) != stated:
        raise UserError(f"{directory} holds {len(records)} images, but its manifest says {stated}; build the set again")
    manifest = image_set.manifest
    labelled = manifest.get("kind") == "i2e"
    num_batches, batch_size = 1 + experiment.data.held_out_batches, experiment.data.batch_size
    if image_set.num_records < num_batches * batch_size:
        held_out = " and the batches that are held out" if num_batches > 1 else ""
        raise UserError(
            f"{directory} holds {image_set.num_records} images, fewer than data.batch_size {batch_size}{held_out} need"
            "; set a smaller batch or build a larger set"
        )
    if labelled:
        _check_vocabulary(image_set)
    if experiment.classifies:
        _check_classes(image_set, experiment)
    if labelled:
        _check_class_ids(image_set)
    if experiment.data.weight_column:
        _check_weight_column(records, directory, labelled, experiment.data.weight_column)
    texts = ClassTexts((entry.name, entry.description) for entry in image_set.vocabulary)
    content = {
        "shards": [(shard["file"], shard["num_records"], shard.get("sha256")) for shard in manifest["shards"]],
        "classes": [(e.class_id, e.entity_id, e.name, e.description) for e in image_set.vocabulary],
    }
    return Corpus(
        image_set=image_set,
        records=records,
        labelled=labelled,
        entity_ids=tuple(e.entity_id for e in image_set.vocabulary),
        texts=texts,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        most_entities=max(shard.get("most_entities", MOST_ENTITIES) for shard in manifest["shards"]) if labelled else 1,
    )


def _check_vocabulary(image_set: I2ESet) -> None:
    """Checks that the vocabulary has the classes of the manifest.

    Raises:
        UserError: it does not, or is missing.
    """
    num_classes, vocabulary = image_set.manifest["num_classes"], image_set.vocabulary
    if [entry.class_id for entry in vocabulary] != list(range(num_classes)):
        raise UserError(
            f"{image_set.directory}/vocabulary.jsonl is missing or has other lines than the manifest says: it has "
            f"{len(vocabulary)}, and they must be the classes 0 to {num_classes - 1} in order; build the set again"
        )


def _check_classes(image_set: I2ESet, experiment: Experiment) -> None:
    """Checks that there are classes to tell apart.

    Raises:
        UserError: there are fewer than two.
    """
    if image_set.manifest.get("kind") != "i2e":
        raise UserError(
            f"config {experiment.name} learns classes, but {image_set.directory} holds raw pairs without entities; "
            "give an I2E set as --data, or add --set loss.classification_weight=0"
        )
    num_classes = len(image_set.vocabulary)
    if num_classes < 2:
        raise UserError(
            f"config {experiment.name} learns to tell classes apart, but {image_set.directory} has "
            f"{'only one' if num_classes else 'none'}; give a set of at least two entities as --data, or add --set "
            "loss.classification_weight=0"
        )


def _check_class_ids(image_set: I2ESet) -> None:
    """Checks the least and the greatest class id that the manifest states of each shard; older sets state none.

    Raises:
        UserError: they are not classes of the set; the message names the shard.
    """
    num_classes = image_set.manifest["num_classes"]
    for shard, path in zip(image_set.manifest["shards"], image_set.shard_paths, strict=True):
        least, greatest = shard.get("min_class_id"), shard.get("max_class_id")
        if least is None or greatest is None:  # of a shard without records too
            continue
        if not 0 <= least <= greatest < num_classes:
            raise UserError(
                f"{path} holds the class ids {least} to {greatest}, but those of the set are 0 to {num_classes - 1}; "
                "build the set again"
            )


def _check_weight_column(records: Records, directory: str, labelled: bool, column: str) -> None:
    """Checks that the first record has the column; one that is damaged is reported when it is read.

    Raises:
        UserError: it has not.
    """
    try:
        fields = [name for name, _ in records[0].fields]
    except ValueError:
        return
    known = [SIMILARITIES] * labelled + fields
    if column not in known:
        others = f"set one that it has ({', '.join(known)}), or " if known else ""
        raise UserError(
            f"{directory} has no column '{column}', which data.weight_column names; {others}weigh all examples the "
            "same with --set data.weight_column="
        )


def make_tokenizer(corpus: Corpus, experiment: Experiment) -> tokenizers.Tokenizer:
    """Returns a tokenizer trained on texts that the experiment reads: of entities and of records, by their shares."""
    records = corpus.records
    of_records = experiment.data.alt_text_probability if corpus.labelled else 1.0
    may_skip = experiment.data.num_skippable > 0
    entities = (corpus.texts[i][1] for i in _spread(len(corpus.texts), 1 - of_records))
    alt_texts = (_text(records, i, may_skip) for i in _spread(len(records), of_records))
    texts = itertools.chain(entities, alt_texts)
    return train_tokenizer(texts, experiment.text.vocabulary_size, experiment.text.context_length)


def _spread(total: int, share: float) -> Iterator[int]:
    """Yields positions below `total`, evenly spread: at most the share of the texts that train a tokenizer."""
    count = min(total, round(share * _TOKENIZER_TEXTS))
    return (number * total // count for number in range(count))


def _text(records: Records, position: int, may_skip: bool) -> str:
    try:
        return records[position].text
    except ValueError as error:
        if may_skip:
            return ""
        raise UserError(str(error)) from None


class Records:
    """All records of a set as one sequence, which Grain can pickle.

    Args:
        image_set: the set.
        store: where it lies, if not on a disk; its shards and indices are then looked at when they are read.

    Raises:
        ValueError: a shard is damaged, or one of a store is missing.
    """

    def __init__(self, image_set: I2ESet, store: StoreFiles | None = None):
        self._paths = image_set.shard_paths
        if store is None:
            self._readers = [ShardReader(path) for path in self._paths]
        else:
            store.check_present([name for path in self._paths for name in (path, path + INDEX_SUFFIX)])
            counts = [shard["num_records"] for shard in image_set.manifest["shards"]]
            self._readers = [
                ShardReader(path, files=store, num_records=count)
                for path, count in zip(self._paths, counts, strict=True)
            ]
        self._ends = list(itertools.accumulate(len(reader) for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> LabelledImage:
        shard, row = self._shard_and_row(position)
        return self._readers[shard][row]

    def place(self, position: int) -> str:
        """Returns the words that say where a record lies: `record 3 of <path of the shard>`."""
        shard, row = self._shard_and_row(position)
        return f"record {row} of {self._paths[shard]}"

    def _shard_and_row(self, position: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, position)
        return shard, position - (self._ends[shard - 1] if shard else 0)


class ReadExample:
    """Turns the position of a record into an example. With `num_skippable`, a damaged record gives way to the next one.

    The arrays of an example also hold `drawn`, the position that was asked for, and `read`, that of the record that was
    read: records from the one to before the other are damaged.

    Args:
        records: all records of the set.
        example: what makes an example of a record.
        num_skippable: how many damaged records in a row are skipped at most.

    Raises:
        UserError: a record is damaged; the message names its shard.
    """

    def __init__(self, records: Records, example: Callable[..., dict[str, np.ndarray]], num_skippable: int):
        self._records, self._example, self._num_skippable = records, example, num_skippable

    @property
    def num_records(self) -> int:
        return len(self._records)

    def damage(self, position: int) -> str:
        """Returns what is wrong with a record, and where it lies."""
        try:
            self._example(self._records[position], np.random.default_rng(0))
        except (ValueError, OSError) as error:
            cause = one_line(error).removesuffix("; build the set again")
            return f"{self._records.place(position)} is damaged ({cause})"
        return f"{self._records.place(position)} could not be read at first"

    def __call__(self, drawn: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        for offset in range(self._num_skippable + 1):
            read = (int(drawn) + offset) % len(self._records)
            with contextlib.suppress(ValueError, OSError):
                example = self._example(self._records[read], random)
                return {**example, "drawn": np.asarray(drawn, np.int64), "read": np.asarray(read, np.int64)}
        raise UserError(
            f"{self.damage(int(drawn))}; build the set again, or let damaged records be skipped with "
            f"--set data.num_skippable={max(10, 2 * self._num_skippable)}"
        )


def make_example(
    corpus: Corpus, experiment: Experiment, preprocessing: Preprocessing, tokenizer: tokenizers.Tokenizer | None
) -> Example:
    """Returns the function that turns a record of `corpus` into arrays."""
    return Example(
        preprocessing=preprocessing,
        labelled=corpus.labelled,
        texts=corpus.texts,
        data=experiment.data,
        tokenizer=tokenizer,
        most_entities=corpus.most_entities,
    )


def batches(
    experiment: Experiment, read: ReadExample, process: int, num_processes: int, first_step: int = 0
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of each batch, a dict of arrays; close it after use.

    Step k reads the records k * B to (k + 1) * B - 1 of one global order, whatever the number of processes, workers and
    threads. So the step is all that a run must keep, and it can resume with another number of hosts: no record is lost
    or repeated. `first_step` is the number of steps taken before.
    """
    config = experiment.data
    rows = config.batch_size // num_processes
    chunk = math.gcd(rows, _CHUNK_IMAGES)
    source = _Positions(read.num_records, held_out_positions(experiment, read.num_records))
    positions = grain.MapDataset.source(source).seed(experiment.seed).shuffle().repeat()
    chunks = _ChunksOfProcess(
        positions.random_map(read).batch(chunk), rows // chunk, process, num_processes, first_step
    )
    # Grain counts chunks, per worker. With whole batches, one thread would decode each, and too many would wait.
    waiting = math.ceil(config.prefetch * (rows // chunk) / max(1, config.workers))
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(waiting, config.threads))
    flags.FLAGS.mark_as_parsed()  # Grain reads its own flags before it starts workers, and no command here parses any
    workers = grain.MultiprocessingOptions(num_workers=config.workers)
    return iter(chunks.to_iter_dataset(options).mp_prefetch(workers).batch(rows // chunk, batch_fn=_joined))


def held_out_positions(experiment: Experiment, num_records: int) -> np.ndarray:
    """Returns the positions of the records that training leaves out, int64, sorted: drawn by the seed."""
    count = experiment.data.held_out_batches * experiment.data.batch_size
    return np.sort(np.random.default_rng(experiment.seed).choice(num_records, count, replace=False))


class _Positions(Sequence[int]):
    """The positions of all records but those that are held out, in order."""

    def __init__(self, num_records: int, held_out: np.ndarray):
        self._length = num_records - len(held_out)
        self._kept_before = held_out - np.arange(len(held_out))  # of each, how many positions are kept before it

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return int(index) + int(np.searchsorted(self._kept_before, index, side="right"))


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


def first_images(read: ReadExample, preprocessing: Preprocessing, count: int) -> np.ndarray:
    """Returns normalised images float32 [count, S, S, 3] of records that are spread evenly over the set."""
    random = np.random.default_rng(0)
    chosen = np.linspace(0, read.num_records - 1, count)
    pixels = np.stack([read(int(position), random)["pixels"] for position in chosen])
    images: np.ndarray = preprocessing.normalise(pixels)
    return images
