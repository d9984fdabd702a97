import random

import pytest

from pipeline.demo import templates
from pipeline.demo.captions import Piece, assemble, escape, fill
from pipeline.sources.clean import clean_text

TABLES = [*templates.WITH_TAGS.values(), *templates.WITHOUT_TAGS.values(), templates.BARE]


@pytest.mark.parametrize("table", TABLES)
def test_every_template_gives_the_place_of_its_name(table):
    for template in table:
        text, spans = assemble(fill(template, random.Random(0), name="Côte d’Ivoire", tags=["a", "b"]))
        (named,) = [(start, end) for start, end, role in spans if role == "name"]
        assert text[slice(*named)] == "Côte d’Ivoire"
        assert "{" not in text


def test_parts_of_a_template_keep_what_they_are():
    stray = [Piece(text="a "), Piece(text="summit", role="stray_word")]
    pieces = fill("{caption} - {stray}", random.Random(0), parts={"caption": [Piece(text="pear")], "stray": stray})
    assert assemble(pieces) == ("pear - a summit", [(9, 15, "stray_word")])


def test_spans_are_those_of_the_cleaned_text():
    pieces = [Piece(text="  the  "), Piece(text="A&amp;B", role="name"), Piece(text="  logo ")]
    assert assemble(pieces) == ("the A&B logo", [(4, 7, "name")])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("times", [1, 2])
def test_escaped_texts_are_what_cleaning_turns_back(seed, times):
    text = '"Réunion" & l\'Île <3'
    escaped = escape(text, random.Random(seed), times=times)
    assert escaped.count("&amp;" if times == 2 else "&") >= 5 and '"' not in escaped
    assert clean_text(escaped) == text
    assert ("&amp;" in escaped and "&amp;amp;amp;" not in escaped) or times == 1
    assert times == 2 or "&amp;amp;" not in escaped


def test_a_text_that_would_not_come_back_stays_as_it_is():
    # Cleaning reads the escaped text's own "&lt;b&gt;" as a tag, and drops it.
    assert escape("a <b> c", random.Random(0), times=1) == "a <b> c"
    assert escape("plain", random.Random(0), times=2) == "plain"
