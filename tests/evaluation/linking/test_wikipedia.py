"""Links of articles as labels."""

from evaluation.linking.wikipedia import label_counts, wikipedia_texts
from pipeline.wiki.articles import Article, Link, Passage, read_markup

ENTITIES = {"Bern": ("Q70",), "Bank": ("emoji:1f3e6", "wordnet:1")}


def texts(markup, **kwargs):
    article = Article(title="Aare", redirect="", paragraphs=tuple(read_markup(markup)))
    return wikipedia_texts([article], lambda title: ENTITIES.get(title, ()), half="first", **kwargs)


def mentions(text):
    return [(text.text[one.start : one.end], sorted(one.entity_ids), one.kind) for one in text.mentions]


def test_a_link_names_its_entities_and_one_that_the_base_lacks_names_none():
    [text] = texts("It flows through [[Bern]]. No link here. It has a [[bank]] and a [[Ford (crossing)|Ford]].")[1:]
    assert text.text == "It has a bank and a Ford."
    assert mentions(text) == [("bank", ["emoji:1f3e6", "wordnet:1"], "noun"), ("Ford", [], "name")]
    assert (text.text_id, text.group, text.half, text.kind) == ("Aare#3", "Aare", "first", "wikipedia")


def test_words_that_name_an_entity_of_the_base_are_no_name_of_what_else_they_link():
    # The base lacks the battle. That the link is to it does not say that the word is no name of the town.
    [text] = texts("[[Battle of Bern|Bern]], [[Battle of Bern|a battle]].")
    assert mentions(text) == [("a battle", [], "noun")]
    # These are other things of that name.
    [text] = texts("[[Bern (album)|Bern]] and [[Bern, Idaho|Bern]].")
    assert mentions(text) == [("Bern", [], "name"), ("Bern", [], "name")]
    # What the base has is a label, whatever its words name too.
    assert mentions(texts("A [[Bank|Bern]].")[0]) == [("Bern", ["emoji:1f3e6", "wordnet:1"], "name")]


def test_an_aside_is_not_repeated():
    [text] = texts("[[Battle of Bern|Bern]] was won. Later Bern was [[bank|old]].", with_repeated=True)
    assert mentions(text) == [("old", ["emoji:1f3e6", "wordnet:1"], "noun")]
    found = texts("[[Battle of Bern|Bern]] and [[Bern]]. Later Bern was old.", with_repeated=True)
    assert [mentions(one) for one in found] == [[("Bern", ["Q70"], "name")], [("Bern", ["Q70"], "name")]]


def test_a_link_within_a_link_is_left_out_though_the_outer_one_is_no_label():
    passage = Passage(
        text="in old Bern",
        links=tuple(Link(start=start, end=11, title=title) for start, title in ((3, "History of Bern"), (7, "Thun"))),
    )
    article = Article(title="Aare", redirect="", paragraphs=(passage,))
    entities = {"Bern": ("Q70",), "old Bern": ("Q70",)}
    assert wikipedia_texts([article], lambda title: entities.get(title, ()), half="first") == []


def test_sentences_without_a_label_are_left_out():
    assert [one.text_id for one in texts("No link here. It flows through [[Bern]].")] == ["Aare#2"]


def spans_of(*words):
    return lambda text: [(text.index(one), text.index(one) + len(one)) for one in words if one in text]


def test_a_proper_name_of_the_base_in_lower_case_is_a_common_word():
    [text] = texts("The best buy of [[Bern]], say Best Buy.", names_in=spans_of("best buy", "Best Buy"))
    assert mentions(text) == [("best buy", [], "noun"), ("Bern", ["Q70"], "name")]


def test_a_word_that_the_article_links_is_no_common_word():
    # In the first sentence it may mean what the link of the second names; the words of a link are labelled already.
    found = texts("A shell of [[Bern]]. A [[Shell]].", names_in=spans_of("shell", "Shell"))
    assert [mentions(one) for one in found] == [[("Bern", ["Q70"], "name")], [("Shell", [], "name")]]


def test_labels_are_counted():
    assert label_counts(texts("[[Bern]] and [[Thun]]. [[Bern]].")) == {
        "texts": 2,
        "articles": 1,
        "in the base": 2,
        "outside the base": 1,
    }


def test_names_that_an_article_links_are_labels_where_they_occur_again():
    markup = (
        "'''Abraham Lincoln''' met [[Stephen A. Douglas|Stephen Douglas]] in [[Illinois]] and saw a [[river]].\n\n"
        "Lincoln spoke; Douglas and Abraham Lincoln left Illinois by the river. In Illinois they met Mary Douglas."
    )
    article = Article(title="Abraham Lincoln", redirect="", paragraphs=tuple(read_markup(markup)))
    entities = {"Illinois": ("Q1204",)}
    texts = wikipedia_texts([article], lambda title: entities.get(title, ()), half="first", with_repeated=True)
    labels = [(text.text[one.start : one.end], sorted(one.entity_ids)) for text in texts for one in text.mentions]
    assert labels == [
        ("Abraham Lincoln", []),
        ("Stephen Douglas", []),
        ("Illinois", ["Q1204"]),
        ("river", []),
        ("Lincoln", []),
        ("Douglas", []),
        ("Abraham Lincoln", []),
        ("Illinois", ["Q1204"]),
        ("Illinois", ["Q1204"]),
        ("Douglas", []),
    ]


def test_a_word_of_a_name_that_the_base_has_is_no_label():
    markup = "the [[New York City]] and [[George York]].\n\nYork and George are here."
    article = Article(title="Towns", redirect="", paragraphs=tuple(read_markup(markup)))
    texts = wikipedia_texts(
        [article], lambda title: ("Q60",) if title == "New York City" else (), half="first", with_repeated=True
    )
    labels = [(text.text[one.start : one.end], sorted(one.entity_ids)) for text in texts for one in text.mentions]
    assert labels == [("New York City", ["Q60"]), ("George York", []), ("George", [])]


def test_a_word_that_is_a_name_of_its_own_is_no_part_of_another():
    # The base has the country, which one link names and another one calls a province; it has Ohio, which none names.
    markup = "the [[Angola]], [[Province of Angola]] and [[Ohio River]].\n\nAngola, Province and Ohio."
    article = Article(title="Places", redirect="", paragraphs=tuple(read_markup(markup)))
    entities = {"Angola": ("Q916",), "Ohio": ("Q1397",)}
    texts = wikipedia_texts([article], lambda title: entities.get(title, ()), half="first", with_repeated=True)
    labels = [(text.text[one.start : one.end], sorted(one.entity_ids)) for text in texts for one in text.mentions]
    assert labels == [
        ("Angola", ["Q916"]),
        ("Province of Angola", []),
        ("Ohio River", []),
        ("Angola", ["Q916"]),
        ("Province", []),
    ]


def test_a_name_of_two_articles_is_no_part_of_a_name_that_the_base_lacks():
    markup = "[[Angola]], [[Angola (Portugal)|Angola]], [[Bank of Angola]].\n\nAngola has a Bank."
    article = Article(title="Places", redirect="", paragraphs=tuple(read_markup(markup)))
    texts = wikipedia_texts(
        [article], lambda title: ("Q916",) if title == "Angola" else (), half="first", with_repeated=True
    )
    labels = [(text.text[one.start : one.end], sorted(one.entity_ids)) for text in texts for one in text.mentions]
    # What "Angola" means in the second paragraph is not known.
    assert labels == [("Angola", ["Q916"]), ("Angola", []), ("Bank of Angola", []), ("Bank", [])]


def test_an_article_without_a_name_repeats_none():
    article = Article(title="1 BC", redirect="", paragraphs=tuple(read_markup("Nothing of note; see [[water]].")))
    [text] = wikipedia_texts([article], lambda title: (), half="first", with_repeated=True)
    assert mentions(text) == [("water", [], "noun")]


def test_a_name_may_end_in_a_dot():
    markup = "In [[Washington, D.C.]] it rained.\n\nWashington, D.C. was wet."
    article = Article(title="Rain", redirect="", paragraphs=tuple(read_markup(markup)))
    texts = wikipedia_texts([article], lambda title: ("Q61",), half="first", with_repeated=True)
    assert [mentions(text) for text in texts] == [[("Washington, D.C.", ["Q61"], "name")]] * 2
