import dataclasses
import json
import pathlib
import time

import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import data as data_module
from trainer.data import Records, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing


def with_data(experiment, **changes):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changes))


def contrastive(experiment):
    return dataclasses.replace(experiment, loss=dataclasses.replace(experiment.loss, classification_weight=0.0))


def stream(data, experiment, process=0, num_processes=1, first_step=0, wrapped=lambda example: example):
    corpus = open_corpus(data, experiment)
    preprocessing = Preprocessing(image_size_px=8)
    example = make_example(corpus, experiment, preprocessing, make_tokenizer(corpus, experiment))
    return batches(corpus, experiment, wrapped(example), process, num_processes, first_step)


def equal(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_starts_late_goes_on_as_one_that_was_read_so_far(write_set, tiny, tmp_path, workers):
    data = write_set(tmp_path)
    whole = stream(data, tiny)
    expected = [next(whole) for _ in range(5)]  # crosses the end of the first epoch
    late = stream(data, with_data(tiny, workers=workers), first_step=1)
    assert all(equal(next(late), batch) for batch in expected[1:])
    late.close()


def test_two_hosts_read_together_what_one_reads_alone(write_set, tiny, tmp_path, monkeypatch):
    data = write_set(tmp_path)
    alone = stream(data, tiny)
    monkeypatch.setattr(data_module, "_CHUNK_IMAGES", 4)
    first, second = stream(data, tiny, 0, 2), stream(data, tiny, 1, 2)
    for _ in range(3):
        whole, top, bottom = next(alone), next(first), next(second)
        assert equal(whole, {name: np.concatenate([top[name], bottom[name]]) for name in whole})


def test_an_epoch_reads_every_picture_once(write_set, tiny, tmp_path):
    iterator = stream(write_set(tmp_path), with_data(tiny, batch_size=8))
    pictures = [row.tobytes() for _ in range(5) for row in next(iterator)["pixels"]]
    assert len(set(pictures)) == 40


def test_no_more_batches_wait_decoded_than_prefetch_says(write_set, tiny, tmp_path, monkeypatch):
    decoded = []

    def counting(example):
        def count(record, random):
            decoded.append(record.image_id)
            return example(record, random)

        return count

    monkeypatch.setattr(data_module, "_CHUNK_IMAGES", 4)
    iterator = stream(write_set(tmp_path), with_data(tiny, prefetch=2, threads=3), wrapped=counting)
    next(iterator)
    limit = time.monotonic() + 5
    while len(decoded) < 3 * 16 and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(decoded) == 3 * 16  # the batch that was handed out and the two that wait
    iterator.close()


def test_raw_pairs_group_by_tokens(write_set, tiny, tmp_path):
    batch = next(stream(write_set(tmp_path, kind="pairs"), contrastive(tiny)))
    same_tokens = (batch["tokens"][:, None] == batch["tokens"][None]).all(-1)
    same_group = batch["text_groups"][:, None] == batch["text_groups"][None]
    assert (same_group == same_tokens).all()
    assert same_group.sum() > len(same_group)  # more than the diagonal: the two shards have texts in common
    assert (batch["image_groups"][:, 0] == batch["text_groups"]).all()


def test_a_picture_carries_all_its_classes_and_its_text_the_one_that_was_drawn(write_set, tiny, tmp_path):
    batch = next(stream(write_set(tmp_path), tiny))
    assert (batch["text_groups"] == batch["class_ids"]).all()
    assert (batch["image_groups"][:, 0] == batch["class_ids"]).all()
    second, rest = batch["image_groups"][:, 1], batch["image_groups"][:, 2:]
    assert (second != batch["class_ids"]).all()
    assert set(second.tolist()) >= {-1, 0}  # pictures of the set have one class or two, of 0 to 4
    assert (rest == -1).all()


def test_the_tokenizer_learns_from_texts_spread_over_the_set(write_set, tiny, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(data_module, "_TOKENIZER_TEXTS", 4)
    monkeypatch.setattr(data_module, "train_tokenizer", lambda texts, *_: learned.extend(texts))
    make_tokenizer(open_corpus(write_set(tmp_path, kind="pairs"), contrastive(tiny)), tiny)
    # Records 0, 10, 20 and 30 of two shards of 20; the name goes by the row in its shard.
    assert learned == ["red panda picture 0", "red panda picture 10"] * 2


def test_a_damaged_set_is_reported_before_training(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    shard = next(pathlib.Path(data).glob("*.tfrecord*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is damaged .*; build the set again"):
        open_corpus(data, tiny)
    shard.write_bytes(whole)
    (pathlib.Path(data) / "manifest.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match="manifest.json or vocabulary.jsonl is not valid JSON .*; build the set again"):
        open_corpus(data, tiny)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", {"format_version": 1, "kind": "i2e"}, "lacks the field 'shards'; build the set again"),
        ("manifest.json", [], "has an unknown field or a value of a wrong type .*; build the set again"),
        ("vocabulary.jsonl", {"class": 1}, "unknown field .*'class'.*; build the set again"),
        ("shard-00001.tfrecord", None, "is damaged .*No such file.*; build the set again"),
    ],
)
def test_a_malformed_set_is_reported_in_one_line(write_set, tiny, tmp_path, name, content, message):
    data = write_set(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=message):
        open_corpus(data, tiny)


def test_an_image_that_cannot_be_read_is_named(write_set, tiny, tmp_path):
    corpus = open_corpus(write_set(tmp_path), tiny)
    example = make_example(corpus, tiny, Preprocessing(image_size_px=8), None)
    record = Records(corpus.image_set)[0]
    cut = dataclasses.replace(record, image=record.image[:40])
    with pytest.raises(UserError, match=f"image {record.image_id} of the set cannot be read"):
        example(cut, np.random.default_rng(0))


@pytest.mark.parametrize("change", [lambda lines: lines[::-1], lambda lines: lines[:3]])
def test_a_vocabulary_that_is_not_the_classes_in_order_is_refused(write_set, tiny, tmp_path, change):
    path = pathlib.Path(write_set(tmp_path)) / "vocabulary.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match=r"jsonl has [35] lines; they must be the classes 0 to 4 of the manifest"):
        open_corpus(str(tmp_path), tiny)


def test_a_manifest_whose_counts_differ_from_the_shards_is_refused(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][0]["num_records"] = 21
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 40 images, but its manifest says 41; build the set again"):
        open_corpus(data, tiny)
