"""How often words occur, and how often with a capital."""

import pickle
import zlib

import pytest
import torch

from pipeline.schema import UserError
from pipeline.tagger.hashed_words import HashedWordEmbeddings, features
from pipeline.tagger.word_use import WordUse


@pytest.fixture(scope="module")
def english():
    return WordUse.of_language("en")


def test_capitals_tell_names_from_words(english):
    capitals = {word: english.of(word).capitals for word in ("brazil", "volvo", "apple", "orange", "his", "bicycle")}
    assert capitals == {"brazil": 7, "volvo": 5, "apple": 5, "orange": 2, "his": 0, "bicycle": 0}


def test_frequencies_are_steps_of_half_a_decade(english):
    # 1.5e-3, 8.9e-7 and 1.4e-7 of all words.
    assert [english.of(word).frequency for word in ("his", "volvo", "angola")] == [10, 4, 2]


def test_the_case_of_a_word_does_not_matter_and_unknown_words_have_no_use(english):
    assert english.of("VOLVO") == english.of("Volvo") == english.of("volvo")
    assert english.of("zorblaxian") is None and WordUse().of("volvo") is None


def test_words_in_order_before_and_behind_all_others_are_unknown(monkeypatch):
    use = WordUse((5).to_bytes(4, "little") + (7).to_bytes(4, "little"), bytes([9 * 3 + 8, 2]))
    found = []
    for number in (4, 5, 6, 7, 8):
        monkeypatch.setattr("pipeline.tagger.word_use._hash", lambda _, number=number: number)
        found.append(use.of(""))
    assert found == [None, (3, 8), None, (0, 2), None]


def test_a_language_without_frequencies_is_named():
    with pytest.raises(UserError, match="no frequencies of words for the language 'xx'"):
        WordUse.of_language("xx")


def test_a_word_has_eight_features_of_which_two_are_its_use_beside_its_capital(english):
    assert features("Volvo", english)[-2:] == ("f4A", "c5A")
    assert features("volvo", english)[-2:] == ("f4a", "c5a")
    assert features("zorblaxian", english)[-2:] == ("fa", "ca")
    assert features("St.Gallen", english)[:6] == ("wSt.Gallen", "lst.gallen", "pst.", "slen", "xAa.Aa", "n8A")


def test_embeddings_carry_the_use_of_words(english):
    one = HashedWordEmbeddings(hashes=english.hashes, uses=english.uses)
    again = HashedWordEmbeddings.from_params(one.to_params())
    again.load_state_dict(one.state_dict())
    from flair.data import Sentence

    vectors = []
    for embeddings in (
        one,
        again,
        pickle.loads(pickle.dumps(one)),
        HashedWordEmbeddings.from_params({"num_buckets": 1 << 14}),
    ):
        embeddings.load_state_dict(one.state_dict())
        sentence = Sentence(["Volvo"])
        embeddings.embed(sentence)
        vectors.append(sentence[0].embedding)
    assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[0], vectors[2])
    # One that was saved before words had a use has none, and gives what it gave: the sum of six rows.
    rows = [zlib.crc32(one.encode()) % (1 << 14) for one in features("Volvo", WordUse())]
    assert len(rows) == 6
    torch.testing.assert_close(vectors[3], one.table.weight[rows].sum(0))


def test_rows_are_remembered_of_as_many_words_as_are_stated(english, monkeypatch):
    monkeypatch.setattr("pipeline.tagger.hashed_words._CACHED_WORDS", 2)
    embeddings = HashedWordEmbeddings(hashes=english.hashes, uses=english.uses)
    rows = [embeddings._rows(word) for word in ("a", "b", "c", "a")]
    assert rows[0] == rows[3] and len(embeddings._rows_of) <= 2
