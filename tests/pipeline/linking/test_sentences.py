"""Sentence encoders, by the one that the demo has."""

import os
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
    found = encoder.embed([])
    assert found.shape == (0, 0) and found.dtype == np.float32


def test_a_long_text_is_cut(encoder):
    long = "word " * 300
    assert (encoder.embed([long]) == encoder.embed([long + "and an end that nobody reads"])).all()


class Counting:
    """Embeds a text as its length and 1, reads two words of it, and notes what it is asked."""

    device, max_seq_length = "cuda:1", 2

    def __init__(self):
        self.tokenized, self.encoded = [], []

    def tokenizer(self, texts, **how):
        self.tokenized.append((texts, how))
        return {"input_ids": [text.split()[: how["max_length"]] for text in texts]}

    def encode(self, batch, **how):
        self.encoded.append((batch, how))
        return np.array([[len(text), 1] for text in batch], np.float32)


def test_a_call_has_as_many_texts_as_the_device_wants_all_of_one_number_of_tokens(monkeypatch):
    monkeypatch.setattr("pipeline.engine.devices.BATCH_SIZES", {"cuda": 4, "cpu": 1})
    model = Counting()
    found = SentenceEncoder(model).embed(["f", "a b", "e", "a b c", "ddd", "cc", "e", "b"])
    assert found.tolist() == [[len(text), 1] for text in ("f", "a b", "e", "a b c", "ddd", "cc", "e", "b")]
    assert model.tokenized == [
        (["a b", "a b c", "b", "cc", "ddd", "e", "f"], {"truncation": True, "max_length": 2}),
    ]
    # Of two words, then of one; a call that is not full repeats its first text.
    batches = [["a b", "a b c", "a b", "a b"], ["b", "cc", "ddd", "e"], ["f"] * 4]
    how = {"batch_size": 4, "normalize_embeddings": True, "convert_to_numpy": True, "show_progress_bar": False}
    assert model.encoded == [(batch, how) for batch in batches]


class Damaged:
    """What a SentenceTransformer is where its weights are not numbers."""

    device, max_seq_length = "cpu", None

    def tokenizer(self, texts, **_):
        return {"input_ids": [[0] for _ in texts]}

    def encode(self, batch, **_):
        return np.full((len(batch), 3), np.nan, np.float32)


def test_a_damaged_model_is_an_error():
    encoder = SentenceEncoder(Damaged())
    with pytest.raises(UserError, match="^--sentence-encoder: an embedding is not finite; the model is damaged$"):
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


def test_it_runs_where_the_tagger_does(tmp_path, monkeypatch):
    (tmp_path / "modules.json").touch()
    loaded = []

    def load(folder, **arguments):
        loaded.append((folder, arguments))
        return Counting()

    monkeypatch.setattr(sentences, "torch_device", lambda: "cuda:1")
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", load)
    monkeypatch.delenv("USE_TF", raising=False)
    assert load_sentence_encoder(str(tmp_path)).device == "cuda:1"
    assert loaded == [(str(tmp_path), {"device": "cuda:1"})]
    assert os.environ["USE_TF"] == "0"


def test_the_reason_why_a_model_cannot_be_loaded_is_cut_to_200_characters_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "modules.json").touch()

    def load(folder, **_):
        raise OSError("no\n  such " + "x" * 300)

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", load)
    reason = rf"\(no such {'x' * 192}\)"
    with pytest.raises(UserError, match=rf"^--sentence-encoder .*: cannot be loaded {reason}; give another model$"):
        load_sentence_encoder(str(tmp_path))
