"""Words of texts and how rare they are, worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.kb.bag_of_words import hash_word, hash_words, inverse_document_frequency, split_words


def test_words_lose_stop_words_case_and_plural():
    assert split_words("The Banks of Countries, a bus") == ["bank", "country", "bus"]


def test_the_key_of_a_word_is_the_same_in_every_process():
    assert hash_word("abc") == 0x352441C2  # the CRC-32 of "abc"


def test_words_are_hashed_once_whatever_their_form():
    assert hash_words(["The banks", "a Bank in Spain"]) == {hash_word("bank"), hash_word("spain")}


def test_rarity_is_that_of_bm25():
    # ln(1 + (10 - 1 + 0.5) / (1 + 0.5)) = ln(1 + 9.5 / 1.5), and ln(1 + 0.5 / 10.5)
    rarities = inverse_document_frequency(np.array([1, 10]), 10)
    assert rarities.tolist() == pytest.approx([math.log(1 + 9.5 / 1.5), math.log(1 + 0.5 / 10.5)])
