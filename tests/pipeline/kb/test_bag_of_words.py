"""Closeness of a text to a description, worked out by hand."""

import math

import numpy as np
import pytest

from pipeline.kb.bag_of_words import (
    explained_share,
    hash_word,
    hash_words,
    inverse_document_frequency,
    split_words,
)


def document(*texts):
    return frozenset(one for word in hash_words(texts) for one in (word.key, *word.ngrams))


def test_words_lose_stop_words_case_and_plural():
    assert split_words("The Banks of Countries, a bus") == ["bank", "country", "bus"]


def test_the_share_explained_weighs_words_by_rarity():
    words = [(hash_word("bank"), 3.0), (hash_word("oak"), 1.0)]
    # "bank" weighs 3 of 4.
    assert explained_share(words, document("a bank in Spain")) == pytest.approx(0.75)


def test_a_word_known_only_by_its_ngrams_counts_less():
    # "^telephones": the last n-gram, "ones", is not in "^telephone". Padded length 11 -> 8 n-grams, 7 of them common.
    assert explained_share([(hash_word("telephones"), 1.0)], document("telephone")) == pytest.approx(0.7 * 7 / 8)


def test_words_with_few_common_ngrams_count_nothing():
    assert explained_share([(hash_word("telescope"), 1.0)], document("telephone")) == 0.0


def test_no_words_explain_nothing():
    assert explained_share([], document("bank")) == 0.0


def test_rarity_is_that_of_bm25():
    # ln(1 + (10 - 1 + 0.5) / (1 + 0.5)) = ln(1 + 9.5 / 1.5), and ln(1 + 0.5 / 10.5)
    rarities = inverse_document_frequency(np.array([1, 10]), 10)
    assert rarities.tolist() == pytest.approx([math.log(1 + 9.5 / 1.5), math.log(1 + 0.5 / 10.5)])
