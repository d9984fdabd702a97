import json
import os
import pickle

import numpy as np
import pytest

from pipeline import shard_format
from pipeline.schema import LabelledImage

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


def test_label_fields_of_unequal_length_are_refused():
    record = LabelledImage(image=b"", image_id="a", text="", width_px=1, height_px=1, entity_ids=("Q1",))
    with pytest.raises(ValueError, match="a: 1 entity ids, 0 class ids"):
        shard_format.encode_example(record)


def test_a_shard_is_read_at_random_also_after_pickling(tmp_path):
    write_shard(tmp_path / "s", ["one", "two", "three"])
    reader = shard_format.ShardReader(tmp_path / "s")
    assert [reader[i].text for i in (2, 0, -2)] == ["three", "one", "two"]
    assert [record.text for record in reader[1:]] == ["two", "three"]
    assert pickle.loads(pickle.dumps(reader))[1].text == "two"
    with pytest.raises(IndexError, match="record 3 of 3"):
        reader[3]


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


def test_a_truncated_shard_is_refused(tmp_path):
    write_shard(tmp_path / "s", ["one", "two"])
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="its index says otherwise"):
        shard_format.ShardReader(tmp_path / "s")


@pytest.mark.parametrize("index", [b"", b"\x00" * 12])
def test_an_index_that_is_empty_or_cut_is_refused(tmp_path, index):
    write_shard(tmp_path / "s", ["one", "two"])
    (tmp_path / "s.index").write_bytes(index)
    with pytest.raises(ValueError, match="its index says otherwise"):
        shard_format.ShardReader(tmp_path / "s")


def test_a_shard_whose_writer_failed_has_no_index(tmp_path):
    with pytest.raises(RuntimeError), shard_format.ShardWriter(tmp_path / "s"):
        raise RuntimeError
    with pytest.raises(ValueError, match="s.index is missing"):
        shard_format.ShardReader(tmp_path / "s")


def test_a_set_of_another_version_and_an_unfinished_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="manifest.json is missing"):
        shard_format.open_set(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99, "shards": []}))
    with pytest.raises(ValueError, match="format version 99, this code reads 1"):
        shard_format.open_set(tmp_path)
