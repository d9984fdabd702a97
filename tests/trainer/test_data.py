import dataclasses
import hashlib
import json
import pathlib
import time

import grain
import numpy as np
import pytest

from pipeline.schema import UserError
from tests.trainer.sets import (
    NAMES,
    change_shards,
    contrastive,
    labelled,
    mixed,
    reader,
    rewrite,
    stream,
    with_data,
    with_fields,
)
from trainer import data as data_module
from trainer.data import ReadExample, first_images, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing
from trainer.skipped import SkippedRecords


def equal(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_starts_late_goes_on_as_one_that_was_read_so_far(write_set, tiny, tmp_path, workers):
    data = write_set(tmp_path)
    whole = stream(data, mixed(tiny))
    expected = [next(whole) for _ in range(5)]  # crosses the end of the first epoch
    late = stream(data, mixed(tiny, workers=workers), first_step=1)
    assert all(equal(next(late), batch) for batch in expected[1:])
    late.close()


def test_two_hosts_read_together_what_one_reads_alone(write_set, tiny, tmp_path, monkeypatch):
    data = write_set(tmp_path)
    alone = stream(data, mixed(tiny))
    monkeypatch.setattr(data_module, "_CHUNK_IMAGES", 4)
    first, second = stream(data, mixed(tiny), 0, 2), stream(data, mixed(tiny), 1, 2)
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


@pytest.mark.parametrize(
    ("kind", "fields", "column", "others"),
    [
        ("i2e", {}, "score", r"set one that it has \(similarities\), or "),
        ("i2e", {"url": "u", "scores": "1"}, "score", r"set one that it has \(similarities, url, scores\), or "),
        ("pairs", {"url": "u"}, "similarities", r"set one that it has \(url\), or "),
        ("pairs", {}, "similarities", ""),
    ],
)
def test_a_set_without_the_column_of_weights_is_refused(write_set, tiny, tmp_path, kind, fields, column, others):
    data = write_set(tmp_path, kind=kind)
    rewrite(data, with_fields(**fields), shard=0, row=0)
    message = (
        f"^{data} has no column '{column}', which data.weight_column names; {others}weigh all examples the same with "
        "--set data.weight_column=$"
    )
    with pytest.raises(UserError, match=message):
        open_corpus(data, with_data(contrastive(tiny), weight_column=column))


def test_the_tokenizer_learns_from_each_kind_of_text_by_its_share(write_set, tiny, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(data_module, "_TOKENIZER_TEXTS", 8)
    monkeypatch.setattr(data_module, "train_tokenizer", lambda texts, *_: learned.extend(texts))
    shares = {"description_probability": 0.75, "alt_text_probability": 0.25}
    make_tokenizer(open_corpus(write_set(tmp_path), tiny), with_data(tiny, **shares))
    # All five entities, of which six would fit, and records 0 and 20.
    assert learned == [f"{name}, a thing" for name in NAMES] + ["red panda picture 0"] * 2
    learned.clear()
    monkeypatch.setattr(data_module, "_TOKENIZER_TEXTS", 4)
    make_tokenizer(open_corpus(str(tmp_path), tiny), with_data(tiny, **shares))
    # Three of the entities, 0, 5 // 3 and 10 // 3, and record 0.
    assert learned == [f"{NAMES[number]}, a thing" for number in (0, 1, 3)] + ["red panda picture 0"]


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


def test_bytes_that_are_no_record_are_named_with_their_shard(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    path = tmp_path / "shard-00001.tfrecord"
    content = bytearray(path.read_bytes())
    start = int.from_bytes((tmp_path / "shard-00001.tfrecord.index").read_bytes()[8:16], "little")
    content[start + 12] ^= 0xFF  # the first byte of the payload of record 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^record 1 of {path} is damaged \(.*\); build the set again, or let"):
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


@pytest.mark.parametrize(
    ("fits", "changes", "held_out"),
    [(40, {}, ""), (20, {"held_out_batches": 1}, " and the batches that are held out")],
)
def test_a_set_has_as_many_images_as_one_batch_and_those_held_out(write_set, tiny, tmp_path, fits, changes, held_out):
    data = write_set(tmp_path)
    open_corpus(data, with_data(tiny, batch_size=fits, **changes))
    with pytest.raises(UserError) as refused:
        open_corpus(data, with_data(tiny, batch_size=fits + 1, **changes))
    assert str(refused.value) == (
        f"{data} holds 40 images, fewer than data.batch_size {fits + 1}{held_out} need; set a smaller batch or build a "
        "larger set"
    )


def with_classes(data, count):
    """Leaves the first classes of a set, and of its records what is of class 0."""
    folder = pathlib.Path(data)
    vocabulary, path = folder / "vocabulary.jsonl", folder / "manifest.json"
    vocabulary.write_text("".join(vocabulary.read_text().splitlines(keepends=True)[:count]))
    manifest = json.loads(path.read_text())
    shards = [{**shard, "max_class_id": 0} for shard in manifest["shards"]]
    path.write_text(json.dumps({**manifest, "num_classes": count, "shards": shards}))


def test_two_classes_are_enough_to_tell_apart_and_one_is_not(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    with_classes(data, 2)
    assert open_corpus(data, tiny).num_classes == 2
    with_classes(data, 1)
    with pytest.raises(UserError) as refused:
        open_corpus(data, tiny)
    assert str(refused.value) == (
        f"config tiny learns to tell classes apart, but {data} has only one; give a set of at least two entities as "
        "--data, or add --set loss.classification_weight=0"
    )
    assert open_corpus(data, contrastive(tiny)).num_classes == 1


def test_raw_pairs_teach_no_classes(write_set, tiny, tmp_path):
    data = write_set(tmp_path, kind="pairs")
    with pytest.raises(UserError) as refused:
        open_corpus(data, tiny)
    assert str(refused.value) == (
        f"config tiny learns classes, but {data} holds raw pairs without entities; give an I2E set as --data, or add "
        "--set loss.classification_weight=0"
    )


def test_a_set_of_another_version_or_that_cannot_be_read_is_refused(write_set, tiny, tmp_path):
    data = write_set(tmp_path, version=99)
    with pytest.raises(UserError, match=rf"^{data}.* 99"):
        open_corpus(data, tiny)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError) as refused:
        open_corpus(data, tiny)
    assert str(refused.value).startswith(f"{data} cannot be read ([Errno 21] ")
    assert str(refused.value).endswith("); choose another --data, or repair it")


def test_a_set_is_known_by_its_shards_and_classes(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    corpus = open_corpus(data, tiny)
    # Runs from before must go on: what is hashed stays the same.
    content = {
        "shards": [["shard-00000.tfrecord", 20, "0"], ["shard-00001.tfrecord", 20, "1"]],
        "classes": [[number, f"Q{number}", name, "a thing"] for number, name in enumerate(NAMES)],
    }
    assert corpus.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert corpus.entity_ids == ("Q0", "Q1", "Q2", "Q3", "Q4") and corpus.num_classes == 5
    assert tuple(corpus.texts) == tuple((name, f"{name}, a thing") for name in NAMES)
    assert corpus.image_set.directory == data and corpus.labelled and len(corpus.records) == 40


def test_a_set_states_the_entities_of_an_image_or_allows_32(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "entities")
    assert open_corpus(data, tiny).most_entities == 2
    path = tmp_path / "entities" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"][0]["most_entities"]
    path.write_text(json.dumps(manifest))
    assert open_corpus(data, tiny).most_entities == 32
    assert open_corpus(write_set(tmp_path / "pairs", kind="pairs"), contrastive(tiny)).most_entities == 1


def test_a_shard_that_states_no_class_ids_does_not_hide_those_of_the_next(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    change_shards(data, lambda shards: [{**shards[0], "max_class_id": None}, {**shards[1], "max_class_id": 5}])
    with pytest.raises(UserError, match="shard-00001.tfrecord holds the class ids 0 to 5, but those of the set are"):
        open_corpus(data, tiny)


def test_a_set_of_one_shard_is_opened_and_one_of_none_is_too_small(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    change_shards(data, lambda shards: shards[:1])
    assert len(open_corpus(data, tiny).records) == 20
    change_shards(data, lambda shards: [])
    with pytest.raises(UserError, match=rf"^{data} holds 0 images, fewer than data.batch_size 16 need; set a smaller"):
        open_corpus(data, tiny)


def test_the_tokenizer_skips_a_damaged_record_where_records_may_be_skipped(write_set, tiny, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(data_module, "_TOKENIZER_TEXTS", 4)
    monkeypatch.setattr(data_module, "train_tokenizer", lambda texts, *_: learned.extend(texts))
    data = write_set(tmp_path, kind="pairs")
    path = tmp_path / "shard-00001.tfrecord"
    path.write_bytes(path.read_bytes()[:12] + b"?" + path.read_bytes()[13:])  # of the payload of its first record
    experiment = contrastive(tiny)
    corpus = open_corpus(data, experiment)
    with pytest.raises(UserError, match=rf"^{path}: record 0.*; build the set again$"):
        make_tokenizer(corpus, experiment)
    learned.clear()
    make_tokenizer(corpus, with_data(experiment, num_skippable=1))
    assert learned == ["red panda picture 0", "red panda picture 10", "", "red panda picture 10"]


def test_a_record_that_the_disk_does_not_give_is_skipped_too(write_set, tiny, tmp_path):
    corpus = open_corpus(write_set(tmp_path), tiny)

    def example(record, _):
        if record.image_id == "0-3":
            raise OSError("Input/output error")
        return {"pixels": np.zeros(1)}

    assert ReadExample(corpus.records, example, 1)(3, np.random.default_rng(0))["read"] == 4
    message = (
        rf"^record 3 of {tmp_path}/shard-00000.tfrecord is damaged \(Input/output error\); build the set again, or "
    )
    with pytest.raises(UserError, match=message):
        ReadExample(corpus.records, example, 0)(3, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"--set data.num_skippable=12$"):
        ReadExample(corpus.records, lambda record, _: example(corpus.records[3], _), 6)(3, np.random.default_rng(0))


def test_a_record_that_can_be_read_at_the_second_try_is_named_too(write_set, tiny, tmp_path):
    corpus, tries = open_corpus(write_set(tmp_path), tiny), []

    def example(_, random):
        tries.append(random.random())
        if len(tries) == 1:
            raise OSError("Input/output error")

    message = rf"^record 1 of {tmp_path}/shard-00001.tfrecord could not be read at first; build the set again, or let"
    with pytest.raises(UserError, match=message):
        ReadExample(corpus.records, example, 0)(21, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("prefetch", "workers", "threads", "waiting"),
    [(3, 0, 1, 12), (3, 2, 1, 6), (3, 5, 1, 3), (3, 2, 8, 8)],
)
def test_each_worker_keeps_its_part_of_the_chunks_that_wait(
    write_set, tiny, tmp_path, monkeypatch, prefetch, workers, threads, waiting
):
    asked, real = [], data_module.grain.ReadOptions
    monkeypatch.setattr(data_module.grain, "ReadOptions", lambda **options: asked.append(options) or real(**options))
    monkeypatch.setattr(data_module, "_CHUNK_IMAGES", 4)  # a batch of 16 has four chunks
    stream(write_set(tmp_path), with_data(tiny, prefetch=prefetch, workers=workers, threads=threads)).close()
    assert asked == [{"num_threads": threads, "prefetch_buffer_size": waiting}]


def test_positions_leave_out_those_that_are_held_out():
    positions = data_module._Positions(8, np.asarray([0, 3, 4, 7]))
    assert len(positions) == 4
    assert [positions[number] for number in range(4)] == positions[:] == [1, 2, 5, 6]
    assert positions[1:3] == [2, 5] and all(type(number) is int for number in positions[:])


def test_a_process_takes_its_chunks_of_each_batch_from_a_step_on():
    # Batches of two processes have four chunks, of which process 1 takes the last two.
    chunks = data_module._ChunksOfProcess(grain.MapDataset.range(12), 2, 1, 2, 0)
    assert len(chunks) == 6 and [chunks[number] for number in range(6)] == [2, 3, 6, 7, 10, 11]
    part = chunks[1:4]
    assert [part[number] for number in range(len(part))] == [3, 6, 7]
    late = data_module._ChunksOfProcess(grain.MapDataset.range(12), 2, 1, 2, 1)
    assert [late[number] for number in range(4)] == [6, 7, 10, 11]


def test_the_first_images_are_spread_over_the_set(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    read, preprocessing = reader(data, tiny), Preprocessing(image_size_px=8)
    images = first_images(read, preprocessing, 3)
    pixels = np.stack([read(position, np.random.default_rng(0))["pixels"] for position in (0, 19, 39)])
    np.testing.assert_array_equal(images, preprocessing.normalise(pixels))
