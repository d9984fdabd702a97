"""Wiki markup and dumps become plain text with links."""

import bz2

import pytest

from pipeline.schema import UserError
from pipeline.wiki.articles import Link, clean_title, read_articles, read_markup

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="en">
  <siteinfo><namespaces>
    <namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">File</namespace>
    <namespace key="100" case="first-letter">Portal</namespace>
  </namespaces></siteinfo>
  <page><title>Bern</title><ns>0</ns>
    <revision><text>'''Bern''' is in [[Switzerland]]; [[Portal:Cities]].</text></revision></page>
  <page><title>Berne</title><ns>0</ns><redirect title="Bern" />
    <revision><text>#REDIRECT [[Bern]]</text></revision></page>
  <page><title>Talk:Bern</title><ns>1</ns><revision><text>[[Zurich]] is larger.</text></revision></page>
  <page><title>Basel</title><ns>0</ns><revision><text>On the [[Rhine]].</text></revision></page>
</mediawiki>
"""


def links_of(passage):
    return [(passage.text[link.start : link.end], link.title) for link in passage.links]


def test_links_keep_their_places_when_markup_is_dropped():
    [passage] = read_markup(
        "The  '''[[bank (finance)|bank]]'''<ref>a [[note]]</ref> of {{lang|de|[[Bern]]}}"
        "''[[River_Aare#Course|the Aare]]'' &amp; [[Thun]]s<!-- [[x]] -->."
    )
    assert passage.text == "The bank of the Aare & Thuns."
    assert links_of(passage) == [("bank", "Bank (finance)"), ("the Aare", "River Aare"), ("Thun", "Thun")]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Algiers ({{IPA|x}}; ''Dzayer'') is a city ( {{x}} ) in Africa.", "Algiers (Dzayer) is a city in Africa."),
        ("An area of {{convert|1|km2}} in all", "An area of in all"),
        ("[[File:a.jpg|thumb|A [[dog]]]]Dogs [[de:Hund]][[Category:Dogs]]bark", "Dogs bark"),
        ("[[:Category:Dogs]] and [[#Section|below]]", "Category:Dogs and below"),
        ("see [http://example.org the page] and http://example.org", "see the page and"),
        ("{|\n| cell [[a]]\n|}\nafter", "after"),
        ("x<sub>2</sub> <math>y</math><small>z</small>", "x2 z"),
        ("it''''s", "its"),  # four apostrophes: no end of bold is found, the words remain
    ],
)
def test_what_is_no_text_of_the_article_is_dropped(markup, text):
    [passage] = read_markup(markup)
    assert passage.text == text


def test_headings_items_and_lines_are_passages_of_their_own():
    passages = read_markup("== Name ==\nFirst line.\n\n* an [[item]]\n* another<br>broken\n; term")
    assert [(one.text, one.is_prose) for one in passages] == [
        ("Name", True),
        ("First line.", True),
        ("an item", False),
        ("another", False),
        ("broken", True),
        ("term", False),
    ]
    assert passages[2].links == (Link(start=3, end=7, title="Item"),)


def test_a_link_over_two_lines_is_left_out():
    assert [one.links for one in read_markup("the [[a|b\nc]] d")] == [(), ()]


@pytest.mark.parametrize(
    ("raw", "title"),
    [("dog", "Dog"), (" big_dog#Sec ", "Big dog"), (":Dog", "Dog"), ("#sec", ""), ("écu", "Écu")],
)
def test_titles_are_spelled_as_the_articles_are(raw, title):
    assert clean_title(raw) == title


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2"])
def test_a_dump_gives_articles_and_redirects_of_the_main_namespace(tmp_path, suffix, num_processes):
    path = tmp_path / f"dump{suffix}"
    path.write_bytes(bz2.compress(DUMP.encode()) if suffix.endswith("bz2") else DUMP.encode())
    seen = []
    articles = list(read_articles(path, lambda title: title != "Basel", num_processes=num_processes, watch=seen.append))
    assert [(one.title, one.redirect) for one in articles] == [("Bern", ""), ("Berne", "Bern")]
    assert links_of(articles[0].paragraphs[0]) == [("Switzerland", "Switzerland")]  # a portal is no article
    assert articles[1].paragraphs == ()
    assert seen and all(0 < size <= path.stat().st_size for size in seen)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.xml", None, r"none.xml cannot be read \(No such file or directory\); give a dump of MediaWiki pages"),
        ("a.xml", b"<html></html>", r"a.xml starts with <html>, not with <mediawiki>; give a dump"),
        ("b.xml", DUMP[:700].encode(), r"b.xml cannot be read \(no element found"),
        ("c.xml.bz2", bz2.compress(DUMP.encode())[:200], r"c.xml.bz2 cannot be read \(Compressed file ended"),
        ("d.xml.bz2", b"plain", r"d.xml.bz2 cannot be read \(Invalid data stream\)"),
    ],
)
def test_a_damaged_dump_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_articles(tmp_path / name))
