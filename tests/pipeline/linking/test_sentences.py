"""Sentence encoders, by the one that the demo has."""

import shutil

import numpy as np
import pytest

from pipeline.demo.sentence_encoder import copy_model
from pipeline.linking import sentences
from pipeline.linking.sentences import SentenceEncoder, load_sentence_encoder, sentence_encoder_fingerprint
from pipeline.schema import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "minilm"
    copy_model(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_sentence_encoder(str(folder))


def test_texts_of_like_meaning_lie_near_each_other(encoder):
    plant, planet, text = encoder.embed(["a herb with aromatic leaves", "a world that orbits the sun", "mint tea"])
    assert text @ plant > text @ planet + 0.1


def test_embeddings_have_length_1_and_the_order_of_the_texts(encoder):
    found = encoder.embed(["b", "a longer text", "b", "a"])
    assert found.dtype == np.float32 and found.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)
    assert (found[0] == found[2]).all() and not (found[0] == found[3]).all()


def test_an_embedding_does_not_depend_on_the_other_texts(encoder):
    texts = [f"{word} on a hill" for word in "house tree cow horse church windmill tower cross sheep dog".split()]
    together = encoder.embed([*texts, "a text of quite another length, which would pad the others"])
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert (together[:-1] == alone).all()


def test_no_texts_have_no_embeddings(encoder):
    assert len(encoder.embed([])) == 0


def test_a_long_text_is_cut(encoder):
    long = "word " * 300
    assert (encoder.embed([long]) == encoder.embed([long + "and an end that nobody reads"])).all()


class Damaged:
    """What a SentenceTransformer is where its weights are not numbers."""

    device, max_seq_length = "cpu", None

    def tokenizer(self, texts, **_):
        return {"input_ids": [[0] for _ in texts]}

    def encode(self, batch, **_):
        return np.full((len(batch), 3), np.nan, np.float32)


def test_a_damaged_model_is_an_error():
    encoder = SentenceEncoder(Damaged())
    with pytest.raises(UserError, match="--sentence-encoder: an embedding is not finite; the model is damaged"):
        encoder.embed(["a"])


def test_a_folder_that_sentence_transformers_did_not_save_is_refused(tmp_path):
    missing, plain, file = str(tmp_path / "none"), str(tmp_path), tmp_path / "model.bin"
    file.write_text("x")
    for name, message in (
        (missing, "is no folder"),
        (str(file), "is no folder"),
        ("./none", "is no folder"),
        ("runs/none/encoder", "is no folder"),
        (plain, "has no modules.json"),
    ):
        for function in (load_sentence_encoder, sentence_encoder_fingerprint):
            with pytest.raises(UserError, match=f"--sentence-encoder {name}: {message}; give "):
                function(name)


def test_a_model_that_cannot_be_loaded_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"--sentence-encoder .*copy: cannot be loaded \(.*\); give another model"):
        load_sentence_encoder(str(copy))


def test_the_fingerprint_is_that_of_the_files_wherever_they_lie(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = sentence_encoder_fingerprint(str(folder))
    assert sentence_encoder_fingerprint(str(copy)) == first
    (copy / "1_Pooling" / "config.json").write_text("{}")
    assert sentence_encoder_fingerprint(str(copy)) != first
    assert sentence_encoder_fingerprint("sentence-transformers/all-MiniLM-L6-v2") == (
        "sentence-transformers/all-MiniLM-L6-v2"
    )


def test_it_runs_where_the_tagger_does(folder, monkeypatch):
    asked = {}

    def device(**arguments):
        asked.update(arguments)
        return "cpu"

    monkeypatch.setattr(sentences, "tagger_device", device)
    monkeypatch.setattr(sentences, "this_worker", lambda: 3)
    monkeypatch.setenv("FLAIR_DEVICE", "cpu")
    load_sentence_encoder.cache_clear()
    assert load_sentence_encoder(str(folder)).device == "cpu"
    assert asked == {"num_gpus": 0, "worker": 3, "wanted": "cpu"}
