"""Counts of links and of the same words without a link."""

from pipeline.wiki.anchors import by_entity, count_links, count_unlinked, write_anchors
from pipeline.wiki.articles import Article, read_markup


def article(title, markup):
    return Article(title=title, redirect="", paragraphs=tuple(read_markup(markup)))


ENTITIES = {"Apple": "n1", "Apple Inc.": "Q312", "New York": "Q60", "Rotten apple": "n2"}


def counts(*articles):
    links = by_entity(count_links(articles), lambda title: ENTITIES.get(title, title))
    return links, dict(count_unlinked(articles, links, lambda title: ENTITIES.get(title, title)))


def test_links_are_counted_by_spelling_and_entity():
    links = count_links([article("a", "[[Apple]] [[apple]] [[Apple Inc.|Apple]] [[Apple]] [[!|?!]]")])
    assert links == {"Apple": {"Apple": 2, "Apple Inc.": 1}, "apple": {"Apple": 1}}  # "?!" has no word


def test_spellings_of_more_than_seven_words_are_left_out():
    links = count_links([article("a", "[[x|one two three four five six seven]] [[x|1 2 3 4 5 6 7 8]]")])
    assert list(links) == ["one two three four five six seven"]


def test_titles_of_one_entity_are_added_up():
    links = {"US": {"United States": 2, "USA": 3, "Us (film)": 1}}
    entities = {"United States": "Q30", "USA": "Q30", "Us (film)": "Q5"}
    assert by_entity(links, entities.__getitem__) == {"US": {"Q30": 5, "Q5": 1}}


def test_words_without_a_link_are_counted_where_no_article_links_them():
    linking = article("b", "[[Apple Inc.|Apple]] sells phones; an apple is no phone.")
    other = article("c", "An apple a day. Apple trees. Two apple pies, one rotten apple.")
    _, unlinked = counts(linking, other)
    # Not in the article that links the spelling, nor with a capital letter. "rotten apple" is never linked.
    assert unlinked == {"apple": 3}


def test_an_article_that_links_the_entity_by_another_spelling_does_not_count():
    _, unlinked = counts(article("a", "[[Apple|apple]]"), article("b", "[[Apple|fruit]]: an apple"))
    assert unlinked == {}


def test_the_article_about_it_does_not_count():
    _, unlinked = counts(article("a", "[[Apple|apple]]"), article("Apple", "An apple is a fruit."))
    assert unlinked == {}


def test_words_within_a_longer_name_or_a_link_do_not_count():
    links = article("a", "[[Apple|apple]] [[Rotten apple|rotten apple]]")
    _, unlinked = counts(links, article("b", "a rotten apple, a [[x|green apple tree]]"))
    assert unlinked == {"rotten apple": 1}


def test_the_file_has_a_line_for_each_entity_and_none_twice(tmp_path):
    path = tmp_path / "anchors.tsv"
    num_lines = write_anchors(path, {"Apple": {"Q312": 1, "n1": 2}, "\u00c9cu": {"Q1": 1}}, {"apple": 3})
    assert path.read_text(encoding="utf-8") == "Apple\tQ312\t1\nApple\tn1\t2\napple\t\t3\n\u00c9cu\tQ1\t1\n"
    assert num_lines == 4
