"""Titles, their redirects and their entities."""

import pytest

from pipeline.schema import UserError
from pipeline.wiki.titles import Titles, is_aside, read_redirects, read_titles


def test_redirects_are_followed_and_a_circle_ends():
    titles = Titles.of({"Bern": ("Q70",)}, {"Berne": "Bern", "Capital": "Berne", "a": "b", "b": "a"})
    assert titles.entity_ids("Capital") == ("Q70",) and titles.canonical("Capital") == "Bern"
    assert titles.canonical("a") == "b" and titles.entity_ids("a") == ()


def test_a_redirect_with_an_entity_of_its_own_keeps_it():
    titles = Titles.of({"Lungs": ("emoji:1fac1",), "Lung": ("Q7886",)}, {"Lungs": "Lung"})
    assert titles.entity_ids("Lungs") == ("emoji:1fac1",)


def test_a_title_may_have_several_entities(tmp_path):
    path = tmp_path / "titles.tsv"
    path.write_text("Bank\temoji:1f3e6\nBank\twordnet:1\n\nBern\tQ70\n", encoding="utf-8-sig")
    assert read_titles(path) == {"Bank": ("emoji:1f3e6", "wordnet:1"), "Bern": ("Q70",)}


@pytest.mark.parametrize(
    ("title", "words", "expected"),
    [
        ("Battle of Bern", "Bern", True),
        ("History of the Bern", "Bern", True),
        ("Bern during the war", "Bern", True),
        ("Basel\u2013Bern relations", "Bern", True),
        ("Bern-Basel line", "Bern", True),
        ("Bern River", "Bern", False),
        ("Bern, in Idaho", "Bern", False),
        ("Battle of Bern", "bern", True),  # a title begins with a capital
        ("Bernese army", "Bern", True),
        ("Battle of Bern", "the battle", False),
        ("Bern (album)", "Bern", False),
        ("Bern, Idaho", "bern", False),
        ("Bern Inc.", "Bern", False),
        ("Michael Bern", "Bern", False),
    ],
)
def test_a_link_is_an_aside_where_its_words_are_the_title_of_another_article(title, words, expected):
    assert is_aside(title, words, lambda one: ("Q70",) if one == "Bern" else ()) is expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"Bern\tQ70\nBasel Q78\n",
            r"titles.tsv, line 2: 'Basel Q78'; each line is title and entity with a tab between",
        ),
        (b"Bern\t\n", "titles.tsv, line 1: "),
        (b"Bern\tQ70\t3\n", "titles.tsv, line 1: "),
        (b"\xff\xfe", r"titles.tsv cannot be read \('utf-8' codec .*; give lines of title and entity with a tab"),
        (None, r"titles.tsv cannot be read \(No such file or directory\); give lines of title and entity"),
    ],
)
def test_a_line_that_is_not_two_columns_is_named(tmp_path, content, message):
    path = tmp_path / "titles.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_titles(path)


def test_redirects_are_lines_of_two_titles(tmp_path):
    path = tmp_path / "redirects.tsv"
    path.write_text("Berne\tBern\n")
    assert read_redirects(path) == {"Berne": "Bern"}
