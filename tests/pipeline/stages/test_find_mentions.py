"""Mentions of a text: the union of what the tagger and the dictionary find."""

import pytest

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.function_words import of_languages
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import ImageText, Rejection, Row
from pipeline.stages import find_mentions as stage
from pipeline.stages.find_mentions import find_mentions, find_rows
from pipeline.tagger.load import TaggedSpan

of_languages(("en",))  # once, before the tests: reading it takes longer than any of them


@pytest.fixture(scope="module")
def kb(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        for entity_id, label in [
            ("Q60", "New York City"),
            ("Q1384", "New York"),
            ("Q89", "apple"),
        ]:
            writer.add(Entity(entity_id=entity_id, label=label))
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


def test_a_trailing_dash_is_no_part_of_a_name(kb):
    [mention] = find_mentions("New York - skyline", [TaggedSpan(0, 10, 0.9)], kb)
    assert (mention.surface, mention.end, mention.finder) == ("New York", 8, "tagger")


def test_a_name_found_by_both_carries_the_better_score(kb):
    [mention] = find_mentions("New York", [TaggedSpan(0, 8, 0.9)], kb)
    assert (mention.finder, mention.score, mention.surface) == ("tagger", 0.9, "New York")
    [mention] = find_mentions("New York", [TaggedSpan(0, 8, 0.1)], kb)
    assert (mention.finder, mention.score) == ("dictionary", stage.DICTIONARY_SCORE)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("York Moo", ["New York"]),  # as long as "New York": 8 characters
        ("York Moor", ["York Moor"]),
    ],
)
def test_of_two_known_names_that_cross_the_tagger_wins_only_by_length(tmp_path, label, expected):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="Q1384", label="New York"))
        writer.add(Entity(entity_id="Q1", label=label))
        writer.commit(source="x", source_sha256="")
    text = f"New {label}"
    found = find_mentions(text, [TaggedSpan(4, len(text), 0.9)], KnowledgeBase.open(str(tmp_path)))
    assert [mention.surface for mention in found] == expected


def test_an_unknown_name_of_the_tagger_is_kept_where_it_crosses_no_known_one(kb):
    text = "Zorblax in New York"
    found = find_mentions(text, [TaggedSpan(0, 7, 0.8), TaggedSpan(8, 19, 0.7)], kb)
    assert [(mention.surface, mention.finder) for mention in found] == [
        ("Zorblax", "tagger"),
        ("New York", "dictionary"),
    ]


def test_a_longer_name_around_one_of_the_base_is_its_outer(kb):
    text = "the lights of New York City Marathon Club and an apple"
    city, apple = find_mentions(text, [], kb)
    assert (city.surface, text[slice(*city.outer)]) == ("New York City", "New York City Marathon Club")
    assert (apple.surface, apple.outer) == ("apple", None)


def test_a_longer_name_of_the_tagger_that_the_base_lacks_is_the_outer_of_those_within(kb):
    text = "THE NEW YORK MARATHON"
    [found] = find_mentions(text, [TaggedSpan(4, 21, 0.9)], kb)
    assert (found.surface, found.finder, found.outer) == ("NEW YORK", "dictionary", (4, 21))
    [found] = find_mentions(text, [TaggedSpan(4, 12, 0.9)], kb)
    assert (found.surface, found.finder, found.outer) == ("NEW YORK", "tagger", None)


def test_a_function_word_of_the_tagger_is_no_mention(kb):
    assert find_mentions("The", [TaggedSpan(0, 3, 0.9)], kb) == ()


@pytest.mark.parametrize("text", ["", "\x00\x07", "\ud800", "\u10d0\u10d1 \u12a0\u12a1", " \n"])
def test_a_text_in_which_nothing_can_be_found_has_no_mentions(text, kb):
    assert find_mentions(text, [], kb) == ()


class FakeTagger:
    pass


def rows(*texts):
    return tuple(
        Row(pair=ImageText(image_id=f"p{i}", image=b"", text=text, shard="s", row=i)) for i, text in enumerate(texts)
    )


def test_kept_and_rejected_add_up_to_what_was_read(kb, monkeypatch):
    monkeypatch.setattr(stage, "tag_texts", lambda tagger, texts: [[] for _ in texts])
    outcomes = find_rows(rows("an apple", "nothing known", ""), FakeTagger(), kb)
    kept = [one for one in outcomes if isinstance(one, Row)]
    rejected = [one for one in outcomes if isinstance(one, Rejection)]
    assert [row.pair.image_id for row in kept] == ["p0"]
    assert [(one.image_id, one.stage, one.reason) for one in rejected] == [
        ("p1", "find_mentions", "no_mention"),
        ("p2", "find_mentions", "no_mention"),
    ]
