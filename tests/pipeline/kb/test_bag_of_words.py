"""Words of texts and how rare they are, worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.kb.bag_of_words import (
    bucket_of,
    buckets_of,
    fold,
    hash_word,
    hash_words,
    inverse_document_frequency,
    split_words,
)


def test_words_lose_stop_words_case_and_plural():
    assert split_words("The Banks of Countries, a bus") == ["bank", "country", "bus"]


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("cars", "car"),
        ("skies", "sky"),
        ("gas", "gas"),  # too short
        ("glass", "glass"),
        ("cactus", "cactus"),
        ("tennis", "tennis"),
    ],
)
def test_only_the_ending_of_a_plural_is_cut(word, stem):
    assert split_words(word) == [stem]


def test_words_are_compared_without_case_and_width():
    assert fold("ABC") == fold("\uff21\uff22\uff23") == "abc"
    assert fold("STRASSE") == fold("Stra\u00dfe") == "strasse"
    assert split_words("Stra\u00dfen \uff21\uff22\uff23") == ["strassen", "abc"]


def test_the_bucket_of_a_word_is_the_same_in_every_base():
    # The last 24 bits of the key: the files of a base that was built earlier are read by them.
    keys = [0, 0xFFFFFF, 0x1000000, 0x1000005, 0xFFFFFFFE]
    assert [bucket_of(key) for key in keys] == [0, 0xFFFFFF, 0, 5, 0xFFFFFE]
    found = buckets_of(np.array(keys, np.uint32))
    assert found.tolist() == [bucket_of(key) for key in keys] and found.dtype == np.uint64


def test_the_key_of_a_word_is_the_same_in_every_process():
    assert hash_word("abc") == 0x352441C2  # the CRC-32 of "abc"


def test_words_are_hashed_once_whatever_their_form():
    assert hash_words(["The banks", "a Bank in Spain"]) == {hash_word("bank"), hash_word("spain")}


def test_rarity_is_that_of_bm25():
    # ln(1 + (10 - 1 + 0.5) / (1 + 0.5)) = ln(1 + 9.5 / 1.5), and ln(1 + 0.5 / 10.5)
    rarities = inverse_document_frequency(np.array([1, 10], np.uint32), 10)
    assert rarities.dtype == np.float32
    assert rarities.tolist() == pytest.approx([math.log(1 + 9.5 / 1.5), math.log(1 + 0.5 / 10.5)])
