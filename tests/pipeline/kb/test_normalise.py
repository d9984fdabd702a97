"""Keys of names, and the keys of their variants."""

from __future__ import annotations

import unicodedata

import pytest

from pipeline.kb.normalise import (
    HAN,
    KATAKANA,
    MARKS,
    WORD,
    _marks,
    alias_variants,
    find_words,
    fold_key,
    normalise_alias,
    normalise_piece,
    strip_legal_suffix,
    variant_spellings,
)


@pytest.mark.parametrize(
    ("key", "singulars"),
    [
        ("cars", ["car"]),
        ("cherries", ["cherry"]),
        ("churches", ["church", "churche"]),
        ("dishes", ["dish", "dishe"]),
        ("boxes", ["box", "boxe"]),
        ("glasses", ["glass", "glasse"]),
        ("heroes", ["hero", "heroe"]),
        ("roses", ["rose"]),
        ("gas", []),  # too short
        ("glass", []),
        ("cactus", []),
        ("tennis", []),
        ("car", []),
    ],
)
def test_singulars(key: str, singulars: list[str]) -> None:
    assert alias_variants(key) == singulars
    assert all(one.nouns_only and one.match == 0.6 for one in variant_spellings(key))


@pytest.mark.parametrize(
    ("key", "variants"),
    [
        ("the hague's", [("the hague", 0.9), ("hague", 0.9)]),
        ("girls'", [("girls", 0.9), ("girl", 0.6)]),
        ("the apple inc", [("apple inc", 0.9), ("the apple", 0.7)]),
        ("apple co., ltd.", [("apple", 0.7)]),
        ("apple group holdings", [("apple", 0.7), ("apple group holding", 0.6)]),
        ("inc", []),
        ("the ", []),  # nothing is left
        ("apple", []),
    ],
)
def test_variants_in_the_order_of_their_likeness(key: str, variants: list[tuple[str, float]]) -> None:
    assert [(one.key, one.match) for one in variant_spellings(key)] == variants
    assert [one.nouns_only for one in variant_spellings(key)] == [match == 0.6 for _, match in variants]  # singulars


def test_a_legal_form_that_is_all_of_a_name_stays() -> None:
    assert strip_legal_suffix("co inc") == "co"
    assert strip_legal_suffix("x inc") == "x"
    assert strip_legal_suffix(", inc") == ", inc"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("  New\u2013York__City. ", "new york city"),
        ("\uff21\uff30\uff30\uff2c\uff25", "apple"),
        ("STRA\u00dfE", "strasse"),
        ("Wendy\u2019s `n\u02bc", "wendy's 'n"),
        ("(!!!)", "(!!!)"),
        ("-", "-"),
        (" \u3000", ""),
        ("\ud800", "?"),
    ],
)
def test_keys(name: str, key: str) -> None:
    assert normalise_alias(name) == key


@pytest.mark.parametrize(
    "form",
    "incorporated corporation holdings holding limited company group gmbh corp inc ltd llc plc ag sa se nv ab oy bv kg"
    " co s.p.a s.a".split(),
)
def test_each_legal_form_goes_with_a_comma_or_dot_or_without(form: str) -> None:
    assert strip_legal_suffix(f"apple {form}") == strip_legal_suffix(f"apple, {form}.") == "apple"
    assert strip_legal_suffix(f"apple{form}") == f"apple{form}"
    assert strip_legal_suffix(f"apple {form} pie") == f"apple {form} pie"


@pytest.mark.parametrize("form", ["co ltd", "co. ltd", "co, ltd", "co., ltd", "co., ltd."])
def test_a_company_limited_goes_as_a_whole(form: str) -> None:
    assert strip_legal_suffix(f"apple {form}") == "apple"


@pytest.mark.parametrize(
    "sign",
    list(
        ".,;:!?\"'()[]{}<>|/\\\xab\xbb\u201a\u201c\u201d\u201e\u201f\u2039\u203a\u275b\u275c\u275d\u275e\u2e42\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u301d\u301e\u301f"
    ),
)
def test_signs_around_a_name_are_no_part_of_its_key_but_those_within_are(sign: str) -> None:
    assert normalise_alias(f"{sign}R{sign}D{sign}") == f"r{sign}d"


@pytest.mark.parametrize("sign", list(" \t\n_-\u00a0\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u3000"))
def test_blanks_hyphens_and_underscores_are_one_blank(sign: str) -> None:
    assert normalise_alias(f"New{sign}{sign}York") == "new york"


@pytest.mark.parametrize("sign", list("\u2019\u2018\u201b\u02bc\u02b9\u2032\u00b4\uff07\uff40`'"))
def test_apostrophes_are_alike(sign: str) -> None:
    assert normalise_alias(f"Wendy{sign}s") == "wendy's"
    assert normalise_piece(sign) == "'"
    assert normalise_alias(f"B\u00f6ll{sign}s") == "b\u00f6ll's"


@pytest.mark.parametrize(
    ("letter", "plain"),
    [("\u00f8", "o"), ("\u0142", "l"), ("\u0111", "d"), ("\u00f0", "d"), ("\u00fe", "th"), ("\u00e6", "ae"),
     ("\u0153", "oe"), ("\u0131", "i"), ("\u00e9", "e"), ("\u01b0", "u"), ("\u03cc", "\u03bf")],
)  # fmt: skip
def test_letters_without_their_accents_and_strokes(letter: str, plain: str) -> None:
    assert fold_key(f"x{letter}x") == f"x{plain}x"


@pytest.mark.parametrize(
    ("key", "folded"),
    [
        ("wendy's rock'n'roll", "wendys rocknroll"),
        ("2.0", "2.0"),
        (".5", "5"),  # a dot with one figure beside it
        ("5.a", "5a"),
        ("a.5", "a5"),
        ("a&b", "a&b"),
        ("a & b and c", "a&b&c"),
        ("a and", "a&"),
        ("a andes", "a andes"),
        ("sand castle", "sand castle"),
        ("j r tolkien", "jr tolkien"),
        ("tolkien j r", "tolkien jr"),
        ("aj r", "aj r"),  # not an initial, then one
        ("j ra", "j ra"),
        ("x & y z", "x&y z"),
        ("\u0645\u0640\u0635\u0640\u0631", "\u0645\u0635\u0631"),  # the stroke that makes a word longer
        ("\u0645\u0650\u0635\u0652\u0631\u064b\u0670", "\u0645\u0635\u0631"),
        ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("\u0623", "\u0623"),  # a letter of its own
    ],
)
def test_apostrophes_dots_ands_and_initials_are_folded(key: str, folded: str) -> None:
    assert fold_key(key) == folded


def test_each_script_without_spaces_is_split_into_characters() -> None:
    # The first and the last letter of each range, with its neighbour in Unicode beyond it where that is a letter.
    for first, last in (
        ("\u3005", "\u3007"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufa6d"),
        ("\U00020000", "\U0003134a"), ("\u0e01", "\u0ec6"), ("\u0edc", "\u0f00"), ("\u1000", "\u102a"),
        ("\u1780", "\u17b3"), ("\u3041", "\u30ff"), ("\u31f0", "\u31ff"), ("\uff66", "\uff9d"),
    ):  # fmt: skip
        assert WORD.findall(first + last) == [first, last]
    assert WORD.findall("\u0dc0\u0dc1") == ["\u0dc0\u0dc1"]  # Sinhala is written with spaces
    assert WORD.findall("\uac00\uac01") == ["\uac00\uac01"]  # and so is Korean
    assert WORD.findall("ab_cd1") == ["ab", "cd1"]
    assert WORD.findall("XXL taxi") == ["XXL", "taxi"]
    assert HAN.search("XXL") is None


def test_marks_stay_with_their_letter() -> None:
    # A Thai vowel sign is also within the range of its script; an accent may follow its letter as a character.
    assert WORD.findall("\u0e01\u0e31\u0e19") == ["\u0e01\u0e31", "\u0e19"]
    assert WORD.findall("e\u0301te\u0301 ne") == ["e\u0301te\u0301", "ne"]
    assert WORD.findall("\uff8a\uff9f") == ["\uff8a\uff9f"]


@pytest.mark.parametrize("sign", list("\xb2\xb3\xb9\xbd\u2070\u2074\u2079\u2080\u2089\u2153\u2460\u249b\u24ff\u2776"))
def test_a_small_figure_is_a_word_of_its_own(sign: str) -> None:
    assert WORD.findall(f"IKEA{sign}, {sign}IKEA{sign}{sign}") == ["IKEA", sign, sign, "IKEA", sign, sign]
    assert WORD.findall("3\u2160 x\u207f 1a") == ["3\u2160", "x\u207f", "1a"]  # neither Roman figures nor letters
    assert find_words(f"IKEA{sign}") == ["IKEA", sign]


def test_han_signs_are_no_kana_and_katakana_no_hiragana() -> None:
    assert HAN.findall("\u6771\u3042\u30a2\u3400\u3005\U00020000\uf900a\u0e01") == list(
        "\u6771\u3400\u3005\U00020000\uf900"
    )
    assert KATAKANA.findall("\u3042\u30a1\u30fa\u30fb\u30fc\u30ff\u6771\u31f0\u31ff a\uff66\uff9f") == [
        "\u30a1\u30fa", "\u30fc\u30ff", "\u31f0\u31ff", "\uff66\uff9f"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "Rock'n'Roll, 7-up_2!", "a\tb\x0cc\x1cd", "l\u2019été à Séoul", "東京 2020"])
def test_words_are_those_of_the_pattern_also_where_all_is_ascii(text):
    assert find_words(text) == WORD.findall(text)


def test_marks_are_accents_and_vowel_signs_but_not_the_marks_of_symbols() -> None:
    assert _marks() == MARKS  # called once more: what is read at import is the same
    assert set("\u0300\u036f\u0903\u0e31\u3099\ufb1e\ufe20\ufe2f\uff9e\uff9f") <= set(MARKS)
    assert not set("a\u0e01\u02ff\u0488\u20cf\u20d0\u20e3\u20f0\ufe00\ufe0f\ufe10") & set(MARKS)
    # All are marks by their category, but for the two of half-width kana.
    assert {unicodedata.category(mark) for mark in MARKS[:-2]} == {"Mn", "Mc"}
    assert MARKS[-2:] == "\uff9e\uff9f"


def test_the_pieces_of_a_name_make_up_its_key() -> None:
    pieces = ["New", "\u2013", "YORK", "_ ", "Stra\u00dfe"]
    assert [normalise_piece(piece) for piece in pieces] == ["new", " ", "york", " ", "strasse"]
    assert "".join(map(normalise_piece, pieces)) == normalise_alias("".join(pieces))
    assert normalise_piece("\u2019s & ") == "'s & "  # other signs stay, and so do blanks at the ends
