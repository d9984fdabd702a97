"""Function words, by language."""

from __future__ import annotations

import pytest

from pipeline.kb.bag_of_words import split_words
from pipeline.kb.function_words import FunctionWords, function_words, function_words_of_all, of_languages


def test_function_words_are_frequent_stop_words() -> None:
    english = function_words("en")
    assert {"the", "his", "of", "you", "up"} <= english
    # Nouns and adjectives, though lists of stop words have them, and frequent words that are no stop words.
    assert not {"home", "world", "system", "time", "people", "1"} & english
    assert len(english) <= 110
    assert "world" in function_words("en", 250) and not {"1", "time"} & function_words("en", 250)
    assert {"sur", "la", "les"} <= function_words("fr")
    assert function_words("pt-br") == function_words("pt") != frozenset()
    assert function_words("xx") == function_words("") == frozenset()
    # Latin has stop words and no frequencies, Icelandic the other way round.
    assert function_words("la") == function_words("is") == frozenset()


def test_a_text_has_the_function_words_of_the_base_and_of_its_own_language() -> None:
    words = FunctionWords(["en"])
    assert words.own == function_words("en")
    assert "sur" in words.of_text("des fleurs sur la table".split())
    assert "auf" in words.of_text("blumen und auf".split())
    # Also words that are less frequent than those that count in the language of the base.
    assert words.own < words.of_text(["sur", "les"]) and "pendant" in words.of_text(["sur", "les"])
    assert "plusieurs" in words.telling and not {"pendant", "plusieurs"} & function_words("fr")
    # One telling word is not enough, nor are words that English has too.
    assert words.of_text(["sur", "table"]) == words.own
    assert words.of_text(["hat", "car", "door", "man"]) == words.own
    # As many English words as French ones.
    assert words.of_text("a box of sur les".split()) == words.own
    assert "dans" in words.of_text("a box of sur les dans".split())
    # Each language for itself: one word of French and one of German.
    assert words.of_text(["sur", "auf"]) == words.own


@pytest.mark.parametrize(
    ("telling", "further"),
    [
        ("avec les", "dans"), ("auf einer", "nicht"), ("los aunque", "entonces"), ("della anche", "degli"),
        ("uma ainda", "depois"), ("het een", "niet"),
    ],
)  # fmt: skip
def test_two_words_that_tell_a_language_bring_in_its_other_function_words(telling: str, further: str) -> None:
    words = FunctionWords(["en"])
    assert further not in words.own
    assert further in words.of_text(telling.split())
    assert further not in words.of_text(telling.split()[:1])


def test_a_base_in_another_language_has_its_function_words() -> None:
    french = FunctionWords(["fr", "de-at"])
    assert french.own == function_words("fr") | function_words("de")
    assert "his" in french.of_text("his friends and their house".split())
    assert of_languages(("fr", "de-at")).own == french.own
    assert "his" in french.telling and not {"und", "sur"} & french.telling  # those are its own
    assert FunctionWords(["xx"]).own == frozenset()


def test_words_that_describe_leave_out_function_words_of_all_languages() -> None:
    assert {"the", "sur", "und"} <= function_words_of_all()
    assert not {"hat", "car", "door", "plus", "son"} & function_words_of_all()
    assert {"depuis", "dalle"} <= function_words_of_all()  # less frequent ones, which tell their language
    assert split_words("The cars sur la table und the hat") == ["car", "table", "hat"]
