"""What tests change of the tiny set and of the tiny experiment, and how they read it."""

import dataclasses
import json
import pathlib

import numpy as np

from pipeline.shard_format import ShardReader, ShardWriter
from trainer.data import ReadExample, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing

NAMES = ("red panda", "blue whale", "green tree", "grey wolf", "white owl")  # of the classes of the set


def with_data(experiment, **changes):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changes))


def mixed(experiment, **changes):
    """With all kinds of texts, and with weights."""
    shares = {"name_probability": 0.25, "description_probability": 0.25, "alt_text_probability": 0.5}
    return with_data(experiment, **shares, weight_column="similarities", **changes)


def contrastive(experiment):
    return dataclasses.replace(experiment, loss=dataclasses.replace(experiment.loss, classification_weight=0.0))


def stream(data, experiment, process=0, num_processes=1, first_step=0, wrapped=lambda example: example):
    corpus = open_corpus(data, experiment)
    preprocessing = Preprocessing(image_size_px=8)
    example = make_example(corpus, experiment, preprocessing, make_tokenizer(corpus, experiment))
    read = ReadExample(corpus.records, wrapped(example), experiment.data.num_skippable)
    return batches(experiment, read, process, num_processes, first_step)


def arrays_of(data, experiment, tokenizer=None):
    """The function that makes the arrays of a record, for a number of the random generator."""
    corpus = open_corpus(data, experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), tokenizer)
    records = corpus.records
    return lambda position, seed=0: example(records[position], np.random.default_rng(seed))


def with_fields(**fields):
    return lambda record: dataclasses.replace(record, fields=tuple(fields.items()))


def reader(data, experiment, num_skippable=0):
    corpus = open_corpus(data, experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), None)
    return ReadExample(corpus.records, example, num_skippable)


def rewrite(data, change, shard=1, row=3):
    """Writes a shard again with one record changed; returns the path of the shard."""
    path = pathlib.Path(data) / f"shard-{shard:05}.tfrecord"
    records = list(ShardReader(path))
    records[row] = change(records[row])
    with ShardWriter(path) as writer:
        for record in records:
            writer.write(record)
    return path


def labelled(*class_ids):
    return lambda record: dataclasses.replace(
        record,
        class_ids=class_ids,
        entity_ids=tuple(f"Q{one}" for one in class_ids),
        similarities=(0.5,) * len(class_ids),
    )


def change_shards(data, change):
    """Replaces the shards that a manifest states by `change` of them."""
    path = pathlib.Path(data) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "shards": change(manifest["shards"])}))
