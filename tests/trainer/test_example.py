import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.schema import UserError
from pipeline.shard_format import ShardReader
from tests.trainer.sets import (
    NAMES,
    arrays_of,
    contrastive,
    labelled,
    mixed,
    reader,
    rewrite,
    stream,
    with_data,
    with_fields,
)
from trainer.data import make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing


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


WRONG_RECORDS = [
    (
        lambda record: dataclasses.replace(record, image=record.image[:40]),
        r"image 1-3 cannot be read \(cannot identify image file .*\)",
    ),
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
