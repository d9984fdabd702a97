"""How a text uses capitals."""

from __future__ import annotations

import pytest

from pipeline.kb.case import case_style, has_capitalised_word, sentence_starts
from pipeline.kb.normalise import WORD


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("a red apple on a table", "lower"),
        ("A red apple on a table in Rome", "sentence"),
        ("Honda Civic hatchback 2012, full service history", "sentence"),
        ("Nike Running Shoes for Men Black", "title"),
        ("Men's Running Shoes", "title"),
        ("NIKE RUNNING SHOES FOR MEN", "upper"),
        ("SALE: NIKE SHOES 50% off", "upper"),  # 3 of 4 words
        ("NIKE SHOES", "upper"),
        ("NIKE SHOES FOR MEN SALE now so on", "upper"),  # 5 of 8
        ("NIKE SHOES SALE for men", "sentence"),  # 3 of 5 are not more than 60 %
        ("a flight to the USA in May", "sentence"),
        ("Aa " * 13 + "bb " * 7, "sentence"),  # 13 of 20 are not more than 65 %
        ("Aa " * 14 + "bb " * 7, "title"),
        ("Brazil", "sentence"),
        ("UK", "sentence"),  # one word alone is no style
        ("New York", "sentence"),
        ("I am a fan of A", "lower"),  # words of one letter do not count
        ("\u6771\u4eac\u30bf\u30ef\u30fc", "none"),
        ("123 \U0001f34e", "none"),
        ("", "none"),
    ],
)
def test_styles(text: str, style: str) -> None:
    assert case_style(text) == style


@pytest.mark.parametrize(
    ("text", "expected"),
    [("img_Rome.jpg", True), ("the McDonald", True), ("\u00c9t\u00e9", True), ("a BMW M3 in HD, DSC0012.JPG", False),
     ("an iPad", False), ("A pad", False), ("\u6771\u4eac 12", False), ("", False)],
)  # fmt: skip
def test_a_capitalised_word_has_small_letters_behind_its_capital(text: str, expected: bool) -> None:
    assert has_capitalised_word(text) is expected


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("A cat. A dog! Who? Me", ["A", "A", "Who", "Me"]),
        ('"Paris," he said', ["Paris"]),
        ("J. Smith of St. Paul met Mrs. Dalloway", ["J"]),
        ("It is in Rome. Rain falls", ["It", "Rain"]),  # four letters are no abbreviation
        ("Go to the U.S. Senate hears", ["Go"]),
        ("Title | Shop: red - Blue \u2013 Green \u2022 Grey", ["Title", "Shop", "red", "Green", "Grey"]),
        ("one\ntwo", ["one"]),  # a line may end within a sentence
        ("one.\nTwo", ["one", "Two"]),
        ("end.) Next", ["end", "Next"]),
        ("3.5 m of www.example.com", ["3"]),
        ("\u6771\u4eac\u3002\u5927\u962a", ["\u6771", "\u5927"]),
        ("... !", []),
    ],
)
def test_words_that_open_a_sentence(text: str, opening: list[str]) -> None:
    starts = sorted(sentence_starts(text))
    assert [WORD.match(text, start)[0] for start in starts] == opening  # type: ignore[index]


@pytest.mark.parametrize("sign", list(".!?:;|\u2013\u2014\u2022\n") + ["\u3002", "\uff01", "\uff1f"])
@pytest.mark.parametrize("closing", ["", *"'\"\u201d\u2019)]", "')"])
def test_each_sign_ends_a_sentence_with_what_closes_it(sign: str, closing: str) -> None:
    text = f"some house{sign}{closing} Other"
    assert sentence_starts(text) == {0, len(text) - len("Other")}


def test_a_sign_without_a_blank_ends_a_sentence_only_in_chinese_and_japanese() -> None:
    for sign in ".!?:;|\u2013\u2014\u2022":
        assert sentence_starts(f"some{sign}Other") == {0}
    for sign in "\u3002\uff01\uff1f":
        assert sentence_starts(f"some{sign}Other") == {0, 5}


@pytest.mark.parametrize("words", ["some J. Other", "some \u042f. Other", "some St. Other", "some Mrs. Other"])
def test_the_dot_of_a_short_word_with_a_capital_or_of_a_letter_ends_no_sentence(words: str) -> None:
    assert sentence_starts(words) == {0}


@pytest.mark.parametrize(
    "words", ["room 5. Other", "some Ab5. Other", "some SMS. Other", "some st. Other", "St.  Other"]
)
def test_figures_longer_words_and_small_ones_are_no_abbreviation(words: str) -> None:
    assert sentence_starts(words) == {0, words.index("Other")}
