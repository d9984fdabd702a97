"""Sets in a store, by the driver of TensorStore for files; tests/infra/test_gs.py has an emulated gs://."""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.schema import UserError
from pipeline.shard_format import ShardWriter
from trainer import store as store_module
from trainer.configs.base import override
from trainer.data import ReadExample, batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Preprocessing


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """This machine's folder for copies; no store stays open from one test to the next."""
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "cache"))
    store_module._opened.cache_clear()
    return tmp_path / "cache"


def stream(data, experiment):
    corpus = open_corpus(data, experiment)
    tokenizer = make_tokenizer(corpus, experiment)
    read = ReadExample(corpus.records, make_example(corpus, experiment, Preprocessing(image_size_px=8), tokenizer), 0)
    return batches(experiment, read, 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_in_a_store_gives_the_batches_of_one_on_a_disk(write_set, tiny, tmp_path, cache, workers):
    data = write_set(tmp_path / "set")
    remote = stream(f"file://{data}/", override(tiny, [f"data.workers={workers}"]))
    local = stream(data, tiny)
    for _ in range(4):
        mine, expected = next(remote), next(local)
        assert mine.keys() == expected.keys()
        assert all((mine[name] == expected[name]).all() for name in mine)
    remote.close()
    (folder,) = cache.glob("offsets-*")
    for name in ("shard-00000.tfrecord.index", "shard-00001.tfrecord.index"):
        assert (folder / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    assert len(list(folder.iterdir())) == 2  # nothing unfinished
    experiments = [open_corpus(where, tiny).fingerprint for where in (data, f"file://{data}")]
    assert experiments[0] == experiments[1]  # a run may go on from a copy of the set


def test_another_set_at_the_same_address_has_offsets_of_its_own(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    first = open_corpus(f"file://{data}", tiny).records[0]
    with ShardWriter(tmp_path / "set" / "shard-00000.tfrecord") as writer:
        for _ in range(20):
            writer.write(first)
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["sha256"] = "another"
    path.write_text(json.dumps(manifest))
    assert open_corpus(f"file://{data}", tiny).records[19] == first


@pytest.mark.parametrize("name", ["shard-00001.tfrecord", "shard-00001.tfrecord.index"])
def test_a_shard_that_is_missing_is_named_at_the_start(write_set, tiny, tmp_path, name):
    data = write_set(tmp_path / "set")
    (tmp_path / "set" / name).unlink()
    with pytest.raises(UserError, match=rf"is damaged \(file://{data}/{name} is missing\); build the set again"):
        open_corpus(f"file://{data}", tiny)
    with pytest.raises(
        UserError, match=rf"^file://{data}// is damaged \(file://{data}/{name} is missing\); build the s"
    ):
        open_corpus(f"file://{data}//", tiny)


def test_no_set_at_an_address_is_said_as_for_a_folder(tiny, tmp_path):
    with pytest.raises(UserError, match=rf"^file://{tmp_path}/no holds no finished set \(manifest.json is missing\)"):
        open_corpus(f"file://{tmp_path}/no", tiny)


@pytest.mark.parametrize("address", ["s3://bucket/set", "http://host/set", "://set"])
def test_a_store_of_another_kind_is_refused(tiny, address):
    with pytest.raises(UserError, match=rf"^--data {address}: sets are read from folders and from gs://; copy it to"):
        open_corpus(address, tiny)


def records_of(data, experiment, num_skippable=0):
    corpus = open_corpus(f"file://{data}", experiment)
    return ReadExample(
        corpus.records, make_example(corpus, experiment, Preprocessing(image_size_px=8), None), num_skippable
    )


def test_a_shard_that_ends_early_is_damaged(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    shard = pathlib.Path(data) / "shard-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    read = records_of(data, tiny, num_skippable=1)
    assert read(39, np.random.default_rng(0))["read"] == 0  # the record after the last is the first
    message = rf"^record 19 of file://{shard} is damaged \(file://{shard} ends before byte \d+\); build the set again"
    with pytest.raises(UserError, match=message):
        records_of(data, tiny)(39, np.random.default_rng(0))


def test_an_index_that_ends_early_is_damaged(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    index = pathlib.Path(data) / "shard-00000.tfrecord.index"
    index.write_bytes(index.read_bytes()[:-8])
    message = rf"^record 19 of file://.*-00000.tfrecord is damaged \(file://{index} ends before record 19\); build"
    with pytest.raises(UserError, match=message):
        records_of(data, tiny)(19, np.random.default_rng(0))


def failing(message):
    def fail(*_, **__):
        raise ValueError(message)

    answer = SimpleNamespace(result=lambda: fail())
    return SimpleNamespace(read=lambda *_, **__: answer, list=lambda: answer)


def test_a_store_that_does_not_answer_ends_the_run_and_counts_as_no_damage(write_set, tiny, tmp_path, monkeypatch):
    data = write_set(tmp_path / "set")
    read = records_of(data, tiny, num_skippable=5)
    monkeypatch.setattr(store_module, "_opened", lambda _: failing("UNAVAILABLE: no route\nto host"))
    message = (
        r"^file://.*/shard-00000.tfrecord.index cannot be read \(UNAVAILABLE: no route to host\); check the address"
    )
    with pytest.raises(UserError, match=message):
        read(0, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"^gs://bucket/set/manifest.json cannot be read \(UNAVAILABLE"):
        open_corpus("gs://bucket/set", tiny)


def test_a_folder_that_cannot_keep_offsets_is_named(write_set, tiny, tmp_path, cache, monkeypatch):
    data = write_set(tmp_path / "set")
    read = records_of(data, tiny)
    (folder,) = cache.glob("offsets-*")
    folder.rmdir()
    with pytest.raises(
        UserError, match=r"^the offsets of file://.*index cannot be kept on this machine .*No such file"
    ):
        read(0, np.random.default_rng(0))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "file"))
    message = (
        rf"^the offsets of file://{data} cannot be kept on this machine \(.*exists.*\); name a folder with room for 8 "
        "bytes a record in the environment variable MOFI_CACHE$"
    )
    with pytest.raises(UserError, match=message):
        open_corpus(f"file://{data}", tiny)


def test_a_shard_that_goes_away_is_named(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    read = records_of(data, tiny, num_skippable=5)
    read(0, np.random.default_rng(0))
    (tmp_path / "set" / "shard-00000.tfrecord").unlink()
    message = rf"^file://{data}/shard-00000.tfrecord is missing; build the set again, or give another --data$"
    with pytest.raises(UserError, match=message):
        read(1, np.random.default_rng(0))


def test_a_folder_that_cannot_be_listed_is_named(write_set, tiny, tmp_path, monkeypatch):
    data = write_set(tmp_path / "set")
    real = store_module._opened

    def without_list(address):
        return SimpleNamespace(read=real(address).read, list=failing("PERMISSION_DENIED").list)

    monkeypatch.setattr(store_module, "_opened", without_list)
    message = rf"^file://{data} cannot be read \(PERMISSION_DENIED\); check the address, your rights and the network$"
    with pytest.raises(UserError, match=message):
        open_corpus(f"file://{data}", tiny)


def test_an_index_that_goes_away_before_it_is_copied_is_named(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    read = records_of(data, tiny, num_skippable=5)
    (tmp_path / "set" / "shard-00001.tfrecord.index").unlink()
    message = rf"^file://{data}/shard-00001.tfrecord.index is missing; build the set again, or give another --data$"
    with pytest.raises(UserError, match=message):
        read(20, np.random.default_rng(0))


def test_a_store_is_asked_again_for_a_while_and_what_it_says_at_last_is_cut(monkeypatch):
    asked = []

    def fail(address, *, context):
        asked.append((address, context))
        raise ValueError("UNAVAILABLE " + "x" * 400)

    fake = SimpleNamespace(KvStore=SimpleNamespace(open=fail), Context=dict)
    monkeypatch.setattr(store_module, "tensorstore", fake)
    message = rf"^gs://bucket/set cannot be read \(UNAVAILABLE {'x' * 288}\); check the address, your rights and the"
    with pytest.raises(UserError, match=message):
        store_module.StoreFiles("gs://bucket/set/")
    retries = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "32s"}
    assert asked == [("gs://bucket/set/", {"gcs_request_retries": retries})]


def test_the_offsets_of_shards_in_folders_lie_in_one(write_set, tiny, tmp_path, cache):
    data = write_set(tmp_path / "set")
    (tmp_path / "set" / "part").mkdir()
    for path in (tmp_path / "set").glob("shard-*"):
        path.rename(tmp_path / "set" / "part" / path.name)
    path = tmp_path / "set" / "manifest.json"
    path.write_text(path.read_text().replace('"shard-', '"part/shard-'))
    assert records_of(data, tiny)(0, np.random.default_rng(0))["read"] == 0
    (folder,) = cache.glob("offsets-*")
    assert [one.name for one in folder.iterdir()] == ["part%shard-00000.tfrecord.index"]
