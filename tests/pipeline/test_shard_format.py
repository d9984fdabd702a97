"""The seam between pipeline and trainer: bytes of records, shards with their index, and sets."""

import dataclasses
import json
import os
import pickle
import re

import numpy as np
import pytest
import tensorflow as tf

from pipeline import shard_format
from pipeline.schema import LabelledImage, VocabularyEntry

RECORD = LabelledImage(
    image=b"x",
    image_id="a",
    text="hé",
    width_px=1,
    height_px=2,
    entity_ids=("Q1",),
    class_ids=(3,),
    similarities=(0.5,),
)

# The wire format of tf.train.Example, features sorted by key: frozen here, so
# that a set written today opens tomorrow.
GOLDEN = bytes.fromhex(
    "0a99010a120a09636c6173735f69647312051a030a01030a140a0a656e746974795f69647312060a040a0251310a0f0a0668656967687412"
    "051a030a01020a110a08696d6167655f696412050a030a01610a0e0a05696d61676512050a030a01780a180a0c73696d696c617269746965"
    "73120812060a040000003f0a0f0a047465787412070a050a0368c3a90a0e0a05776964746812051a030a0101"
)


def write_shard(path, texts):
    with shard_format.ShardWriter(path) as writer:
        for i, text in enumerate(texts):
            writer.write(LabelledImage(image=b"i", image_id=str(i), text=text, width_px=1, height_px=1))


def test_a_record_has_the_golden_bytes_and_comes_back_from_them():
    assert shard_format.encode_example(RECORD) == GOLDEN
    assert shard_format.decode_example(GOLDEN) == RECORD


def test_fields_that_pass_through_are_json_in_a_feature_of_their_own():
    record = dataclasses.replace(RECORD, fields=(("url", "caf\u00e9"), ("licence", "")))
    payload = shard_format.encode_example(record)
    feature = tf.train.Example.FromString(payload).features.feature
    assert list(feature["fields"].bytes_list.value) == ['{"url": "caf\u00e9", "licence": ""}'.encode()]
    assert shard_format.decode_example(payload) == record


def test_label_fields_of_unequal_length_are_refused():
    for entity_ids, class_ids, similarities in ((("Q1",), (), ()), ((), (), (0.5,))):
        record = LabelledImage(
            image=b"",
            image_id="a",
            text="",
            width_px=1,
            height_px=1,
            entity_ids=entity_ids,
            class_ids=class_ids,
            similarities=similarities,
        )
        counts = f"a: {len(entity_ids)} entity ids, 0 class ids and {len(similarities)} similarities"
        with pytest.raises(ValueError, match=f"^{counts}; give the same number of each$"):
            shard_format.encode_example(record)


def test_shards_have_the_names_that_tensorflow_datasets_expects():
    # No count: a further shard renames none.
    assert shard_format.shard_file("i2e", 7) == "i2e-train.tfrecord-00007"
    assert shard_format.shard_file("i2e", 123456) == "i2e-train.tfrecord-123456"
    assert shard_format.shard_pattern("i2e") == "i2e-train.tfrecord-*"


def test_a_shard_is_read_at_random_also_after_pickling(tmp_path):
    write_shard(tmp_path / "s", ["one", "two", "three"])
    reader = shard_format.ShardReader(tmp_path / "s")
    assert [reader[i].text for i in (2, 0, -2)] == ["three", "one", "two"]
    assert [record.text for record in reader[1:]] == ["two", "three"]
    assert pickle.loads(pickle.dumps(reader))[1].text == "two"
    assert len(reader) == 3 and [reader[-3].text, reader[-1].text] == ["one", "three"]
    for position in (3, -4):
        with pytest.raises(IndexError, match=f"^record {position} of 3 in {re.escape(str(tmp_path))}/s$"):
            reader[position]


def test_a_sequence_ends_where_the_shard_ends(tmp_path):
    write_shard(tmp_path / "s", ["one", "two"])
    assert [record.text for record in shard_format.ShardReader(tmp_path / "s")] == ["one", "two"]
    write_shard(tmp_path / "empty", [])
    assert len(shard_format.ShardReader(tmp_path / "empty")) == 0
    assert np.fromfile(f"{tmp_path}/empty.index", "<u8").tolist() == [0]


def test_an_index_of_another_shard_of_the_same_size_is_refused_when_a_record_is_read(tmp_path):
    write_shard(tmp_path / "s", ["one", "three"])
    write_shard(tmp_path / "t", ["three", "one"])
    (tmp_path / "s.index").write_bytes((tmp_path / "t.index").read_bytes())
    reader = shard_format.ShardReader(tmp_path / "s")
    # The first record is 2 bytes shorter than the index of the other shard says.
    place = re.escape(f"{tmp_path}/s: record 0 does not start at byte 0; build the set again")
    with pytest.raises(ValueError, match=f"^{place}$"):
        reader[0]


def test_an_index_that_ends_early_is_named_when_a_record_is_read_and_not_looked_at_where_the_length_is_known(tmp_path):
    write_shard(tmp_path / "s", ["one", "two"])
    index = (tmp_path / "s.index").read_bytes()
    (tmp_path / "s.index").write_bytes(index[:-8])
    reader = shard_format.ShardReader(tmp_path / "s", num_records=2)
    assert len(reader) == 2 and reader[0].text == "one"
    message = re.escape(f"{tmp_path}/s.index ends before record 1; build the set again")
    with pytest.raises(ValueError, match=f"^{message}$"):
        reader[1]


def test_reading_holds_no_file_open_and_pickles_no_offsets(tmp_path):
    write_shard(tmp_path / "s", ["text"] * 1000)
    reader = shard_format.ShardReader(tmp_path / "s")
    before = len(os.listdir("/proc/self/fd"))
    assert reader[999].text == "text"
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(pickle.dumps(reader)) < 1000  # the offsets alone are 8,008 bytes


def test_the_index_holds_the_start_of_each_record_and_the_end(tmp_path):
    write_shard(tmp_path / "s", ["one"])
    # 16 bytes of frame around the payload.
    payload = shard_format.encode_example(LabelledImage(image=b"i", image_id="0", text="one", width_px=1, height_px=1))
    assert np.fromfile(f"{tmp_path}/s.index", "<u8").tolist() == [0, 16 + len(payload)]


def test_every_byte_that_is_flipped_is_noticed_and_named(tmp_path):
    write_shard(tmp_path / "s", ["one", "two"])
    whole = (tmp_path / "s").read_bytes()
    start, end = np.fromfile(f"{tmp_path}/s.index", "<u8").tolist()[1:]
    named = 0
    for position in range(start, end):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (tmp_path / "s").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(tmp_path))}/s: record 1[ ,].*build the set again$"
        ) as told:
            shard_format.ShardReader(tmp_path / "s")[1]
        assert shard_format.ShardReader(tmp_path / "s")[0].text == "one"
        named += ", which calls itself image " in str(told.value)
    assert named  # where the id can still be read, e.g. when the byte is one of the picture's


def test_a_record_of_something_else_is_named(tmp_path):
    payload = b"no example"
    with tf.io.TFRecordWriter(str(tmp_path / "s")) as writer:
        writer.write(payload)
    (tmp_path / "s.index").write_bytes(np.array([0, 16 + len(payload)], "<u8").tobytes())
    place = rf"{re.escape(str(tmp_path))}/s: record 0 cannot be decoded \(.+\); build the set again"
    with pytest.raises(ValueError, match=f"^{place}$"):
        shard_format.ShardReader(tmp_path / "s")[0]


def test_a_truncated_shard_is_refused(tmp_path):
    write_shard(tmp_path / "s", ["one", "two"])
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:-1])
    message = f"{tmp_path}/s has {len(data) - 1} bytes, its index says otherwise; build the set again"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        shard_format.ShardReader(tmp_path / "s")


@pytest.mark.parametrize("cut", [slice(0), slice(4), slice(12), slice(4, None)])
def test_an_index_that_is_empty_or_cut_is_refused(tmp_path, cut):
    write_shard(tmp_path / "s", ["one", "two"])
    # The last cut takes bytes from the start: the end of the shard is still there.
    (tmp_path / "s.index").write_bytes((tmp_path / "s.index").read_bytes()[cut])
    with pytest.raises(ValueError, match="its index says otherwise"):
        shard_format.ShardReader(tmp_path / "s")


def test_a_shard_whose_writer_failed_has_no_index(tmp_path):
    with pytest.raises(RuntimeError), shard_format.ShardWriter(tmp_path / "s"):
        raise RuntimeError
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/s.index is missing; build the set again$"):
        shard_format.ShardReader(tmp_path / "s")


def test_a_set_of_another_version_and_an_unfinished_one_are_refused(tmp_path):
    folder = re.escape(str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"^{folder} holds no finished set \(manifest.json is missing\); build it, or let it finish$"
    ):
        shard_format.open_set(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99, "shards": []}))
    with pytest.raises(ValueError, match=f"^{folder} has format version 99, this code reads 1; build it again$"):
        shard_format.open_set(tmp_path)


def test_a_set_has_its_shards_its_vocabulary_and_its_number_of_records(tmp_path, monkeypatch):
    shards = [{"file": "b", "num_records": 2}, {"file": "a", "num_records": 3}]
    manifest = {"format_version": 1, "shards": shards, "note": "Caf\u00e9"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    pairs = shard_format.open_set(tmp_path)
    assert (pairs.directory, pairs.manifest, pairs.vocabulary) == (str(tmp_path), manifest, ())
    assert pairs.shard_paths == (f"{tmp_path}/b", f"{tmp_path}/a") and pairs.num_records == 5
    entry = VocabularyEntry(class_id=0, entity_id="Q1", name="\u6771\u4eac", description="city", image_count=4)
    line = json.dumps(dataclasses.asdict(entry), ensure_ascii=False) + "\n"
    (tmp_path / "vocabulary.jsonl").write_text(line, encoding="utf-8")
    assert shard_format.open_set(str(tmp_path)).vocabulary == (entry,)
    # In a locale of another encoding too.
    real_open = open

    def open_in_ascii_locale(path, mode="r", encoding=None):
        return real_open(path, mode, encoding=encoding or (None if "b" in mode else "ascii"))

    monkeypatch.setattr("builtins.open", open_in_ascii_locale)
    again = shard_format.open_set(tmp_path)
    assert (again.manifest, again.vocabulary) == (manifest, (entry,))


def test_reading_a_record_reads_its_own_bytes_only(tmp_path, monkeypatch):
    write_shard(tmp_path / "s", ["one", "two", "three"])
    _, start, end, _ = np.fromfile(f"{tmp_path}/s.index", "<u8").tolist()
    reader = shard_format.ShardReader(tmp_path / "s")
    reads, read = [], shard_format.LocalFiles.read

    def spy(files, path, start, length):
        reads.append((os.path.basename(path), start, length))
        return read(files, path, start, length)

    monkeypatch.setattr(shard_format.LocalFiles, "read", spy)
    assert reader[1].text == "two"
    assert reads == [("s.index", 8, 16), ("s", start, end - start)]


def test_a_read_beyond_the_end_of_a_file_is_short_and_leaves_no_file_open(tmp_path):
    (tmp_path / "f").write_bytes(b"abcdef")
    before = len(os.listdir("/proc/self/fd"))
    files = shard_format.LocalFiles()
    assert files.read(str(tmp_path / "f"), 2, 3) == b"cde"
    assert files.read(str(tmp_path / "f"), 4, 9) == b"ef"
    assert len(os.listdir("/proc/self/fd")) == before
