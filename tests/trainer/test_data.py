import dataclasses
import json
import pathlib
import time

import numpy as np
import pytest

from pipeline.schema import UserError
from pipeline.shard_format import ShardReader, ShardWriter
from trainer import data as data_module
from trainer.data import ReadExample, Records, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing
from trainer.skipped import SkippedRecords


def with_data(experiment, **changes):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changes))


def contrastive(experiment):
    return dataclasses.replace(experiment, loss=dataclasses.replace(experiment.loss, classification_weight=0.0))


def stream(data, experiment, process=0, num_processes=1, first_step=0, wrapped=lambda example: example):
    corpus = open_corpus(data, experiment)
    preprocessing = Preprocessing(image_size_px=8)
    example = make_example(corpus, experiment, preprocessing, make_tokenizer(corpus, experiment))
    read = ReadExample(Records(corpus.image_set), wrapped(example), experiment.data.num_skippable)
    return batches(experiment, read, process, num_processes, first_step)


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
    assert batch["image_groups"].shape == (16, 2)  # as many as the manifest states
    second = batch["image_groups"][:, 1]
    assert (second != batch["class_ids"]).all()
    assert set(second.tolist()) >= {-1, 0}  # pictures of the set have one class or two, of 0 to 4


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


def reader(data, experiment, num_skippable=0):
    corpus = open_corpus(data, experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), None)
    return ReadExample(Records(corpus.image_set), example, num_skippable)


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


WRONG_RECORDS = [
    (lambda record: dataclasses.replace(record, image=record.image[:40]), r"image 1-3 cannot be read \(.*\)"),
    (labelled(1, -1), "image 1-3 has the class id -1, but those of the set are 0 to 4"),
    (labelled(5), "image 1-3 has the class id 5, but those of the set are 0 to 4"),
    (labelled(), "image 1-3 has 0 classes, but images of the set have 1 to 2"),
    (labelled(0, 1, 2), "image 1-3 has 3 classes, but images of the set have 1 to 2"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_RECORDS)
def test_a_wrong_record_is_named_with_its_shard_and_image(write_set, tiny, tmp_path, change, message):
    data = write_set(tmp_path)
    path = rewrite(data, change)
    with pytest.raises(UserError, match=rf"^record 3 of {path} is damaged \({message}\); build the set again, or let"):
        reader(data, tiny)(20 + 3, np.random.default_rng(0))


def test_bytes_that_are_no_record_are_named_with_their_shard(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    path = tmp_path / "shard-00001.tfrecord"
    content = bytearray(path.read_bytes())
    start = int.from_bytes((tmp_path / "shard-00001.tfrecord.index").read_bytes()[8:16], "little")
    content[start + 12] ^= 0xFF  # the first byte of the payload of record 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^record 1 of {path} is damaged \(.*\); build the set again, or let"):
        reader(data, tiny)(21, np.random.default_rng(0))


def test_a_byte_that_is_flipped_in_the_pixels_or_in_a_class_id_is_not_trained_on(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    path = tmp_path / "shard-00001.tfrecord"
    whole = path.read_bytes()
    record = ShardReader(path)[1]
    start = int.from_bytes((tmp_path / "shard-00001.tfrecord.index").read_bytes()[8:16], "little")
    for place in (whole.index(record.image, start) + len(record.image) // 2, whole.index(b"class_ids", start) + 15):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"^record 1 of {path} is damaged .*record 1, which calls itself image 1-1,"
        ):
            reader(data, tiny)(21, np.random.default_rng(0))


def test_a_damaged_record_gives_way_to_the_next_that_is_whole(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    rewrite(data, labelled(-1), row=18)
    rewrite(data, labelled(-1), row=19)  # the last of the set: the first is next
    read = reader(data, tiny, num_skippable=2)
    example, expected = (read(position, np.random.default_rng(0)) for position in (20 + 18, 0))
    assert (example["drawn"], example["read"]) == (38, 0)
    assert (expected["drawn"], expected["read"]) == (0, 0)
    assert (example["pixels"] == expected["pixels"]).all()
    with pytest.raises(UserError, match=r"image 1-18 has the class id -1.* --set data.num_skippable=10$"):
        reader(data, tiny, num_skippable=1)(38, np.random.default_rng(0))


def test_skipped_records_are_listed_once_and_limited(write_set, tiny, tmp_path, capsys):
    data = write_set(tmp_path / "set")
    path = rewrite(data, labelled(-1), row=3)
    rewrite(data, labelled(9), row=4)
    read = reader(data, tiny, num_skippable=5)
    skipped = SkippedRecords(str(tmp_path), read, 2)
    skipped.note(np.asarray([0, 23, 24, 23]), np.asarray([0, 25, 25, 25]))
    assert skipped.count() == 2
    assert SkippedRecords(str(tmp_path), read, 2).count() == 2  # after a resume
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "record": 24,
        "damage": f"record 4 of {path} is damaged (image 1-4 has the class id 9, but those of the set are 0 to 4)",
    }
    assert capsys.readouterr().out.count("warning: skipped: record") == 2
    rewrite(data, labelled(-1), row=19)
    with pytest.raises(UserError, match=r"3 records of the set are damaged, but data.num_skippable is 2; .*Q?1-19"):
        skipped.note(np.asarray([39]), np.asarray([0]))
    with pytest.raises(UserError, match=r"2 records of the set are damaged, but data.num_skippable is 1; "):
        (tmp_path / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        SkippedRecords(str(tmp_path), read, 1).count()


@pytest.mark.parametrize(("least", "greatest"), [(-1, 4), (0, 5)])
def test_class_ids_that_the_manifest_states_outside_the_classes_are_refused(write_set, tiny, tmp_path, least, greatest):
    data = write_set(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][1] |= {"min_class_id": least, "max_class_id": greatest}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    message = f"shard-00001.tfrecord holds the class ids {least} to {greatest}, but those of the set are 0 to 4; build"
    with pytest.raises(UserError, match=message):
        open_corpus(data, tiny)


def test_all_entities_of_an_image_are_kept_from_being_its_negatives(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    twelve = tuple(range(12))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][0] |= {"most_entities": 12, "max_class_id": 11}
    manifest["num_classes"] = 12
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with open(tmp_path / "vocabulary.jsonl", "a") as file:
        for class_id in range(5, 12):
            row = {"class_id": class_id, "entity_id": f"Q{class_id}", "name": f"n{class_id}", "description": ""}
            file.write(json.dumps({**row, "image_count": 1}) + "\n")
    rewrite(data, labelled(*twelve), shard=0, row=0)
    corpus = open_corpus(data, tiny)
    example = make_example(corpus, tiny, Preprocessing(image_size_px=8), make_tokenizer(corpus, tiny))
    groups = example(Records(corpus.image_set)[0], np.random.default_rng(0))["image_groups"]
    assert sorted(groups.tolist()) == list(twelve)


@pytest.mark.parametrize("change", [lambda lines: lines[::-1], lambda lines: lines[:3]])
def test_a_vocabulary_that_is_not_the_classes_in_order_is_refused(write_set, tiny, tmp_path, change):
    path = pathlib.Path(write_set(tmp_path)) / "vocabulary.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(UserError, match=r"says: it has [35], and they must be the classes 0 to 4 in order; build"):
        open_corpus(str(tmp_path), tiny)


@pytest.mark.parametrize("loss", ["classification_weight", "contrastive_weight"])
def test_a_set_without_vocabulary_is_refused(write_set, tiny, tmp_path, loss):
    data = write_set(tmp_path)
    (tmp_path / "vocabulary.jsonl").unlink()
    experiment = dataclasses.replace(tiny, loss=dataclasses.replace(tiny.loss, **{loss: 0.0}))
    with pytest.raises(UserError, match=r"vocabulary.jsonl is missing or has other lines .*: it has 0, and"):
        open_corpus(data, experiment)


def test_a_set_without_classes_teaches_none(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    (tmp_path / "vocabulary.jsonl").write_text("")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    shards = [{name: shard[name] for name in ("file", "num_records", "sha256")} for shard in manifest["shards"]]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "num_classes": 0, "shards": shards}))
    with pytest.raises(UserError, match="learns to tell classes apart, but .* has none; give a set of at least two"):
        open_corpus(data, tiny)


def test_a_manifest_whose_counts_differ_from_the_shards_is_refused(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][0]["num_records"] = 21
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 40 images, but its manifest says 41; build the set again"):
        open_corpus(data, tiny)
