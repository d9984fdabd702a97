import pytest

from pipeline.demo.captions import Piece
from pipeline.demo.spelling import CASES, change_case, hashtag_of, plural_of, with_hashtags, without_diacritics


@pytest.mark.parametrize(
    ("case", "text"),
    [("lower", "the côte d’ivoire's map"), ("upper", "THE CÔTE D’IVOIRE'S MAP"), ("title", "The Côte D’ivoire's Map")],
)
def test_cases_change_letters_and_keep_what_a_piece_is(case, text):
    pieces = change_case([Piece(text="the "), Piece(text="Côte d’ivoire", role="name"), Piece(text="'s map")], case)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.role for piece in pieces] == ["text", "name", "text"]


def test_a_part_of_the_captions_has_no_case_of_its_own():
    assert 0 < sum(CASES.values()) < 0.5


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("apple", "apples"), ("cherry", "cherries"), ("key", "keys"), ("box", "boxes"), ("church", "churches"),
     ("glass", "glasses"), ("scissors", ""), ("tooth", ""), ("knife", ""), ("snowman", ""), ("tomato", ""),
     ("quiz", ""), ("8", "")],
)  # fmt: skip
def test_plurals_are_regular_or_none(noun, plural):
    assert plural_of(noun) == plural


@pytest.mark.parametrize(
    ("name", "bare"),
    [("Citroën", "Citroen"), ("Åland", "Aland"), ("Færøerne", "Faeroerne"), ("Côte d’Ivoire", "Cote d’Ivoire"),
     ("Việt Nam", "Viet Nam"), ("Ελλάδα", "Ελλάδα"), ("Peru", "Peru"), ("パナマ", "パナマ")],
)  # fmt: skip
def test_latin_names_lose_their_diacritics_and_others_keep_theirs(name, bare):
    assert without_diacritics(name) == bare


@pytest.mark.parametrize(
    ("phrase", "tag"), [("South Africa", "SouthAfrica"), ("beach", "beach"), ("Guinea-Bissau", ""), ("", "")]
)
def test_a_hashtag_is_one_word_with_capitals(phrase, tag):
    assert hashtag_of(phrase) == tag


def test_the_sign_of_a_hashtag_is_outside_its_piece():
    pieces = [Piece(text="Flag of "), Piece(text="South Africa", role="name")]
    assert with_hashtags(pieces, "name") == [
        Piece(text="Flag of "),
        Piece(text="#"),
        Piece(text="SouthAfrica", role="name"),
    ]


def test_hashtags_of_tags_stand_without_commas():
    tags = [Piece(text="sea", role="tag"), Piece(text=", "), Piece(text="south coast", role="tag")]
    pieces = [Piece(text="a shell, "), *tags]
    assert "".join(piece.text for piece in with_hashtags(pieces, "tag")) == "a shell, #sea #SouthCoast"
