"""Paragraphs are cut into sentences, and no link is cut."""

from pipeline.wiki.articles import Link, Passage
from pipeline.wiki.sentences import split_sentences


def passage(text, *surfaces):
    links = tuple(Link(start=text.index(one), end=text.index(one) + len(one), title=one.upper()) for one in surfaces)
    return Passage(text=text, links=links)


def parts(paragraph, **kwargs):
    return [
        (one.text, [one.text[link.start : link.end] for link in one.links])
        for one in split_sentences(paragraph, **kwargs)
    ]


def test_sentences_keep_their_links():
    paragraph = passage("Bern is old. The Aare (a river) is cold! It ends.", "Bern", "Aare")
    assert parts(paragraph) == [("Bern is old.", ["Bern"]), ("The Aare (a river) is cold!", ["Aare"]), ("It ends.", [])]


def test_initials_and_names_end_no_sentence():
    text = "George W. Bush and J. R. R. Tolkien met in St.Gallen. 1905 was cold."
    assert [text for text, _ in parts(passage(text))] == [text]  # a digit begins no sentence


def test_a_link_with_a_full_stop_is_not_cut():
    text = "He saw Yahoo! Inc. Then he left."
    assert parts(passage(text, "Yahoo! Inc. Then")) == [(text, ["Yahoo! Inc. Then"])]


def test_a_long_sentence_is_cut_at_a_mark_or_else_at_a_blank():
    assert parts(passage("aaaa bbbb, cccc dddd", "cccc"), chars_max=14) == [("aaaa bbbb,", []), ("cccc dddd", ["cccc"])]
    assert parts(passage("aaaa bbbb cccc dddd"), chars_max=14) == [("aaaa bbbb cccc", []), ("dddd", [])]
    # The mark is in the first half of what fits: the blank gives the longer passage.
    assert parts(passage("aa, bbbb cccc dddd"), chars_max=14) == [("aa, bbbb cccc", []), ("dddd", [])]
    assert parts(passage("aaaa bbbb cccc dddd", "bbbb cccc"), chars_max=10) == [
        ("aaaa", []),
        ("bbbb cccc", ["bbbb cccc"]),
        ("dddd", []),
    ]
    assert parts(passage("a" * 20 + " bb"), chars_max=10) == [("a" * 20, []), ("bb", [])]
