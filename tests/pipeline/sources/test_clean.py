"""Texts as they lie in the input, and as every stage reads them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.schema import ImageText, Rejection
from pipeline.sources.clean import NUM_ESCAPES_MAX, clean_spans, clean_text, without_surrogates
from pipeline.sources.read import read_shard
from tests.fakes import pair, write_tar


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Marks &amp; Spencer food hall", "Marks & Spencer food hall"),
        ("AT&amp;amp;T logo", "AT&T logo"),  # escaped twice
        ("caf&eacute; &#233; &#xE9; CAF&EACUTE;", "café é é CAFÉ"),
        ("Levi&#39;s&nbsp;501", "Levi's 501"),
        ("R&D, Q&A &c; x &notit; 5 &lt", "R&D, Q&A &c; x &notit; 5 &lt"),  # not entities
    ],
)
def test_html_entities_are_decoded_named_numeric_and_escaped_twice(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_entities_are_decoded_a_limited_number_of_times() -> None:
    # Each decoding takes one "amp;" away, the last leaves the sign alone.
    assert clean_text("&" + "amp;" * NUM_ESCAPES_MAX + " x") == "& x"
    assert clean_text("&" + "amp;" * (NUM_ESCAPES_MAX + 1) + " x") == "&amp; x"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<b>Paris</b>", "Paris"),
        ("M<SUP>2</SUP> and <a href='x.html' title=\"y\">Nike</a>", "M2 and Nike"),  # inline: the word goes on
        ("Paris<br>France<BR/>Europe<br />Earth", "Paris France Europe Earth"),  # block: the word ends
        ("one<!-- a comment -->two", "one two"),
        ("&lt;p class=&quot;x&quot;&gt;Rome&lt;/p&gt;", "Rome"),
        ("I <3 Rome, a<bc> 1 < 2 > 0 <p", "I <3 Rome, a<bc> 1 < 2 > 0 <p"),  # not tags
    ],
)
def test_tags_go(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


INLINE = (
    "a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd label mark q s samp small span strike strong sub"
    " sup tt u var wbr"
)
BLOCK = (
    "article aside blockquote br button caption center dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6"
    " header hr iframe img input li link meta nav noscript ol option p path picture pre script section select source"
    " style svg table tbody td tfoot th thead tr ul video"
)


@pytest.mark.parametrize("name", INLINE.split())
def test_within_a_word_each_inline_tag_leaves_nothing(name: str) -> None:
    assert clean_text(f"New<{name}>Y<{name.upper()} x='1'\n y>o</{name}>r</{name} >k<{name}/>City") == "NewYorkCity"


@pytest.mark.parametrize("name", BLOCK.split())
def test_each_block_tag_leaves_a_blank(name: str) -> None:
    assert clean_text(f"a<{name}>b<{name.upper()} x='1'\n y>c</{name}>d</{name} >e<{name}/>f") == "a b c d e f"


@pytest.mark.parametrize(
    "text",
    ["<h7>x</h>", "<xa>", "<ax>", "<a<b", "< a>", "<a//>", "<//a>", "<!- x -->", "<!-- x ->", "<!-- <", "<a-b>", "a>"],
)
def test_what_is_no_tag_of_html_stays(text: str) -> None:
    assert clean_text(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Starbucks%20coffee%2Dcup.jpg", "Starbucks coffee-cup.jpg"),
        (" caf%C3%A9%20in%E6%9D%B1%e4%ba%ac.jpg\n", "caf\u00e9 in\u6771\u4eac.jpg"),
        ("caf%E9%20x%20.jpg", "caf%E9%20x .jpg"),  # no UTF-8: these bytes stay as they are
        ("50%25%20off", "50% off"),
        ("a%2520b", "a b"),  # encoded twice
        ("a%252520b", "a b"),
        ("\u5168\u573a\u53ea\u898150%20\u5143\u8d77", "\u5168\u573a\u53ea\u898150%20\u5143\u8d77"),  # not ASCII
        ("50%20off&nbsp;at&nbsp;Rome", "50%20off at Rome"),  # white space, if escaped
        ("50%20off&amp;nbsp;Rome", "50%20off Rome"),
        ("New&#37;20York.jpg", "New York.jpg"),
        ("a%26%2337%3B41", "aA"),  # an entity of "%"
        ("H%26amp%3BM%3Cbr%3Ex%00y%0A", "H&M xy"),  # what it hides is cleaned too
        ("Rome%", "Rome%"),
        ("Rome%2", "Rome%2"),
        ("Rome%zz", "Rome%zz"),
        ("50%20off at Rome", "50%20off at Rome"),  # running text
        ("%20", ""),
        ("%ED%A0%80", "%ED%A0%80"),  # half of a surrogate pair
    ],
)
def test_percent_encoded_characters_are_decoded_in_a_text_without_white_space(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_percent_encoded_characters_are_decoded_a_limited_number_of_times() -> None:
    assert clean_text("a%" + "25" * (NUM_ESCAPES_MAX - 1) + "20b") == "a b"
    assert clean_text("a%" + "25" * NUM_ESCAPES_MAX + "20b") == "a%20b"


def test_spans_move_with_decoded_characters() -> None:
    assert clean_spans("New%20York%C3%A9.jpg", [(0, 3), (0, 10), (6, 10), (10, 16), (17, 20)]) == (
        "New York\u00e9.jpg", [(0, 3), (0, 8), (4, 8), (8, 9), (10, 13)]
    )  # fmt: skip


# The first and the last of each range; of the control characters from 0x80 on, those that are no letters of Windows.
INVISIBLE = (
    "\x00\x08\x0e\x1b\x7f\x81\x8d\x8f\x90\x9d\xad\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2064\u2066"
    "\u206f\ufeff\ufff9\ufffc"
)


@pytest.mark.parametrize("character", INVISIBLE)
def test_each_invisible_character_goes(character: str) -> None:
    assert clean_text(f"a{character}b") == "ab"


@pytest.mark.parametrize(
    "neighbour", ["\u200a", "\u2010", "\u2065", "\ufff8", "\ufffd", "\xa1", "\xae", "\u0590\u200d"]
)
def test_their_neighbours_stay(neighbour: str) -> None:
    assert clean_text(f"a{neighbour}b") == ("a b" if neighbour.isspace() else f"a{neighbour}b")


@pytest.mark.parametrize("character", "\t\n\x0b\x0c\r\x1c\x1f \xa0\u1680\u2028\u3000")
def test_each_kind_of_white_space_is_a_blank(character: str) -> None:
    assert clean_text(f"a{character}{character}b") == "a b"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\x00b\x07c\x7f\x9d", "abc"),
        (
            "zero\u200bwidth \ufeffsoft\u00adhyphen \u200eleft\u202aright\u2066x\u2060y",
            "zerowidth softhyphen leftrightxy",
        ),
        ("pa\u200dris \u200cx", "paris x"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),  # the joiner makes one picture of two
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),  # Persian
    ],
)
def test_control_and_zero_width_characters_go_but_joiners_that_mean_something(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize("raw", ["  a  b ", "a\n\tb", "a\u00a0\u3000b\r\n", "\x1fa\x1fb", "a \u2028 b", "a &nbsp; b"])
def test_white_space_is_one_blank_between_words_and_none_at_the_ends(raw: str) -> None:
    assert clean_text(raw) == "a b"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Caf\u00c3\u00a9 in Paris", "Café in Paris"),  # UTF-8 read as Latin-1
        ("it\u00e2\u20ac\u2122s", "it\u2019s"),
        ("d\u00e9j\u00e0 vu in S\u00e3o Paulo, \u00c5land", "d\u00e9j\u00e0 vu in S\u00e3o Paulo, \u00c5land"),
        ("\u6771\u4eac\u30bf\u30ef\u30fc", "\u6771\u4eac\u30bf\u30ef\u30fc"),
    ],
)
def test_mojibake_is_repaired_and_other_letters_stay(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


def test_letters_are_composed_and_lone_surrogates_replaced() -> None:
    assert clean_text("Cafe\u0301") == "Caf\u00e9"
    assert clean_text("x \ud83d y") == "x \ufffd y"
    clean_text("x \udfff").encode()  # raises if one is left


def test_quotes_ligatures_and_capitals_stay() -> None:
    text = "\u201cThe\u201d o\ufb03ce \u2013 \uff26\uff35\uff2c\uff2c\u2026"
    assert clean_text(text) == text


@pytest.mark.parametrize("raw", ["", " \n ", "\x00\x01\x02", "\u200b\ufeff", "&#8203;", "<br><!-- x -->"])
def test_a_text_of_nothing_visible_is_empty(raw: str) -> None:
    assert clean_text(raw) == ""


def test_spans_of_the_raw_text_are_moved() -> None:
    raw = " &nbsp;A <b>Marks &amp;amp; Spencer</b>\n\n food CafÃ© hall in Cafe\u0301 X"
    names = ("A", "Marks &amp;amp; Spencer", "food", "CafÃ©", "hall", "Cafe\u0301", "X")
    spans = [(raw.index(name), raw.index(name) + len(name)) for name in names]
    text, moved = clean_spans(raw, spans)
    assert text == clean_text(raw) == "A Marks & Spencer food Café hall in Café X"
    assert [text[start:end] for start, end in moved] == ["A", "Marks & Spencer", "food", "Café", "hall", "Café", "X"]
    assert moved[3] == (23, 27)


def test_spans_move_with_what_is_invisible_and_with_surrogates() -> None:
    assert clean_spans("a\u200bb \ud83d c", [(0, 3), (2, 3), (4, 5), (6, 7)]) == (
        "ab \ufffd c", [(0, 2), (1, 2), (3, 4), (5, 6)]
    )  # fmt: skip


def test_spans_of_a_long_text_move_with_repaired_letters() -> None:
    # Over 200 characters, all of which are frequent: a comparison that leaves frequent ones out would find nothing.
    raw = "e aCaf\u00c3\u00a9 e a" * 40
    text, moved = clean_spans(raw, [(place, place + 5) for place in range(3, len(raw), 12)])
    assert {text[start:end] for start, end in moved} == {"Caf\u00e9"} and len(moved) == 40


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    assert without_surrogates("a \ud800b\udfff \U0001f34e\u00e9") == "a \ufffdb\ufffd \U0001f34e\u00e9"
    assert without_surrogates("plain") == "plain"


def test_spans_of_a_plain_text_stay() -> None:
    assert clean_spans("a plain text", [(2, 7)]) == ("a plain text", [(2, 7)])


def test_a_span_that_cuts_an_entity_takes_all_of_it_and_blanks_may_become_empty() -> None:
    assert clean_spans("x &amp; y", [(0, 4), (4, 9)]) == ("x & y", [(0, 3), (2, 5)])
    assert clean_spans("  x  ", [(0, 2), (2, 3), (3, 5), (0, 5)]) == ("x", [(0, 0), (0, 1), (1, 1), (0, 1)])


def test_what_is_read_from_a_tar_is_clean(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [*pair("a", "AT&amp;T\n logo", 1), *pair("b", "&nbsp;\u200b", 2)])
    first, second = read_shard(str(tmp_path / "s.tar"))
    assert isinstance(first, ImageText) and first.text == "AT&T logo"
    assert isinstance(second, Rejection) and second.reason == "empty_text"


@pytest.mark.parametrize(
    "piece", ["apple pie ", "<a ", "<!-- ", "&amp;", "CafÃ© ", "\u6771\u4eac\u306e", "a \n", "&amp;lt;b", "\u200d&"]
)
def test_time_grows_with_the_length_only(piece: str) -> None:
    def seconds(num_chars: int) -> float:
        text = piece * (num_chars // len(piece))
        start = time.process_time()
        clean_text(text)
        return time.process_time() - start

    # 20 times as long; squared it would take 400 times as long.
    assert seconds(1_000_000) < 100 * max(min(seconds(50_000) for _ in range(3)), 1e-3)
