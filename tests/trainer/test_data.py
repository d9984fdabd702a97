import dataclasses
import hashlib
import json
import pathlib
import time
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.schema import UserError
from pipeline.shard_format import ShardReader, ShardWriter
from trainer import data as data_module
from trainer.data import ReadExample, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing
from trainer.skipped import SkippedRecords

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


def arrays_of(data, experiment, tokenizer=None):
    """The function that makes the arrays of a record, for a number of the random generator."""
    corpus = open_corpus(data, experiment)
    example = make_example(corpus, experiment, Preprocessing(image_size_px=8), tokenizer)
    records = corpus.records
    return lambda position, seed=0: example(records[position], np.random.default_rng(seed))


def test_each_kind_of_text_is_drawn_as_often_as_its_share_says(write_set, tiny, tmp_path):
    texts = []
    recorder = SimpleNamespace(encode=lambda text: texts.append(text) or SimpleNamespace(ids=[0]))
    arrays = arrays_of(write_set(tmp_path), mixed(tiny), recorder)
    for number in range(1000):
        arrays(number % 40, seed=number)
    shares = [len(texts), sum(", a thing" in text for text in texts), sum(" picture " in text for text in texts)]
    # The deviation of 1,000 draws of a quarter is 14, of a half 16.
    assert shares[0] == 1000 and abs(shares[1] - 250) < 45 and abs(shares[2] - 500) < 50
    assert abs(sum(text in NAMES for text in texts) - 250) < 45


def test_one_number_draws_the_entity_and_another_the_kind_of_its_text(write_set, tiny, tmp_path):
    texts = []
    recorder = SimpleNamespace(encode=lambda text: texts.append(text) or SimpleNamespace(ids=[0]))
    corpus = open_corpus(write_set(tmp_path), mixed(tiny))
    example = make_example(corpus, mixed(tiny), Preprocessing(image_size_px=8), recorder)
    # Record 1 has the classes 1 and 3; a quarter of the texts are descriptions, the next half alt-texts.
    for of_entity, of_text in ((0.49, 0.0), (0.5, 0.24), (0.99, 0.25), (0.0, 0.74), (0.5, 0.75)):
        drawing = SimpleNamespace(random=lambda _, drawn=(of_entity, of_text): np.asarray(drawn))
        arrays = example(corpus.records[1], drawing)
        assert arrays["class_ids"] == (3 if of_entity >= 0.5 else 1)
    alt_text = "blue whale picture 1"
    assert texts == ["blue whale, a thing", "grey wolf, a thing", alt_text, alt_text, "grey wolf"]


def test_all_numbers_of_an_example_but_pixels_and_weights_are_int32(write_set, tiny, tmp_path):
    recorder = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[0]))
    for number, (kind, names) in enumerate([("i2e", {"class_ids"}), ("pairs", set())]):
        arrays = arrays_of(write_set(tmp_path / str(number), kind=kind), contrastive(tiny), recorder)(1)
        types = {name: value.dtype for name, value in arrays.items()}
        assert types.pop("pixels") == np.uint8
        assert types == dict.fromkeys({"tokens", "text_groups", "image_groups", *names}, np.int32)


def test_alt_texts_alone_are_the_texts_of_a_set_of_raw_pairs(write_set, tiny, tmp_path):
    alone = with_data(tiny, description_probability=0.0, alt_text_probability=1.0)
    entities = next(stream(write_set(tmp_path / "entities"), contrastive(alone)))
    pairs = next(stream(write_set(tmp_path / "pairs", kind="pairs"), contrastive(tiny)))
    assert all((entities[name] == pairs[name]).all() for name in ("tokens", "pixels"))
    # Pictures of one entity are no negatives of each other's alt-text either.
    assert (entities["text_groups"] == entities["class_ids"]).all()


def test_an_example_weighs_as_much_as_the_similarity_of_the_entity_that_was_drawn(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    weighted = with_data(tiny, weight_column="similarities")
    # Record 1 has the classes 1 and 3, with the similarities 0.3 and 0.5.
    examples = [arrays_of(data, weighted)(1, seed) for seed in range(20)]
    drawn = {(int(one["class_ids"]), round(float(one["weights"]), 6)) for one in examples}
    assert drawn == {(1, 0.3), (3, 0.5)}
    exponential = arrays_of(data, with_data(weighted, weight_mapping="exponential", weight_temperature=0.2))(1)
    expected = {1: np.exp(0.3 / 0.2), 3: np.exp(0.5 / 0.2)}[int(exponential["class_ids"])]
    assert exponential["weights"] == pytest.approx(expected) and exponential["weights"].dtype == np.float32
    assert "weights" not in arrays_of(data, tiny)(1)


@pytest.mark.parametrize("kind", ["i2e", "pairs"])
def test_a_field_that_passed_through_can_be_the_weight(write_set, tiny, tmp_path, kind):
    data = write_set(tmp_path, kind=kind)
    for row in range(20):
        rewrite(data, with_fields(url="u", score=f"{row / 4}"), shard=0, row=row)
    weighted = with_data(contrastive(tiny), weight_column="score")
    assert arrays_of(data, weighted)(7)["weights"] == 1.75


@pytest.mark.parametrize(("value", "weight"), [("0", 0), ("1e30", 1e30)])
def test_the_least_and_the_largest_weight_count(write_set, tiny, tmp_path, value, weight):
    data = write_set(tmp_path)
    rewrite(data, with_fields(score=value), shard=0, row=0)
    weights = arrays_of(data, with_data(tiny, weight_column="score"))(0)["weights"]
    assert weights == np.float32(weight)


def test_a_similarity_that_is_no_weight_is_named_with_its_image(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    rewrite(
        data, lambda record: dataclasses.replace(record, similarities=(0.5,) * (len(record.class_ids) - 1) + (-0.5,))
    )
    with pytest.raises(UserError, match="image 1-3 has the value -0.5 in the column similarities, of which data.weig"):
        reader(data, with_data(tiny, weight_column="similarities"))(23, np.random.default_rng(0))


def with_fields(**fields):
    return lambda record: dataclasses.replace(record, fields=tuple(fields.items()))


@pytest.mark.parametrize(
    ("value", "mapping"),
    [
        *((value, "value") for value in ("-0.1", "nan", "inf", "1e31", "heavy", "", None)),
        *((value, "exponential") for value in ("nan", "inf", "7", "1e300", "heavy", None)),  # exp(70) is 2.5e30
    ],
)
def test_an_example_without_a_weight_is_named_and_can_be_skipped(write_set, tiny, tmp_path, value, mapping):
    data = write_set(tmp_path)
    rewrite(data, with_fields(score="1"), shard=0, row=0)
    path = rewrite(data, with_fields(score=value))
    rewrite(data, with_fields(score="6.5"), row=4)
    weighted = with_data(tiny, weight_column="score", weight_mapping=mapping)
    message = rf"^record 3 of {path} is damaged \(image 1-3 has the value {value!r} in the column score, of which "
    message += rf"data.weight_mapping={mapping} makes no weight of 0 to 1e\+30\); build the set again, or let damaged"
    with pytest.raises(UserError, match=message):
        reader(data, weighted)(23, np.random.default_rng(0))
    skipping = reader(data, weighted, num_skippable=1)(23, np.random.default_rng(0))
    assert skipping["weights"] == pytest.approx(6.5 if mapping == "value" else np.exp(65))


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
    groups = example(corpus.records[0], np.random.default_rng(0))["image_groups"]
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


def change_shards(data, change):
    """Replaces the shards that a manifest states by `change` of them."""
    path = pathlib.Path(data) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "shards": change(manifest["shards"])}))


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
