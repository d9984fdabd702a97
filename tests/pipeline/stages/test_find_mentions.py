"""Mentions of a text: the union of what the tagger and the dictionary find."""

from types import SimpleNamespace

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
            ("Q1490", "東京"),
            ("Q220", "Rome"),
            ("Q90", "Paris"),
            ("Q89", "apple"),
        ]:
            writer.add(Entity(entity_id=entity_id, label=label))
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


def test_a_trailing_dash_is_no_part_of_a_name(kb):
    [mention] = find_mentions("New York - skyline", [TaggedSpan(0, 10, 0.9)], kb)
    assert (mention.surface, mention.end, mention.finder) == ("New York", 8, "tagger")


@pytest.mark.parametrize("sign", [" ", "-", "\u2013", "\u2014", ",", ";", ":", "|", "/", " - ", "!"])
def test_each_sign_that_parts_names_is_cut_off_behind_one_and_no_other(kb, sign):
    [mention] = find_mentions(f"Zorblax{sign}", [TaggedSpan(0, 7 + len(sign), 0.9)], kb)
    assert mention.surface == ("Zorblax!" if sign == "!" else "Zorblax")


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
    text = f"at New {label}"
    found = find_mentions(text, [TaggedSpan(7, len(text), 0.9)], KnowledgeBase.open(str(tmp_path)))
    assert [mention.surface for mention in found] == expected


def test_an_unknown_name_of_the_tagger_is_kept_where_it_crosses_no_known_one(kb):
    text = "Zorblax in New York"
    found = find_mentions(text, [TaggedSpan(0, 7, 0.8), TaggedSpan(8, 19, 0.7)], kb)
    assert [(mention.surface, mention.finder) for mention in found] == [
        ("Zorblax", "tagger"),
        ("New York", "dictionary"),
    ]


def test_a_name_that_only_the_dictionary_finds_counts_less_and_least_in_small_letters(kb):
    found = find_mentions("an apple in New York", [], kb)
    assert [(one.surface, one.start, one.end, one.score, one.finder) for one in found] == [
        ("apple", 3, 8, stage.DICTIONARY_SCORE_LOWER, "dictionary"),
        ("New York", 12, 20, stage.DICTIONARY_SCORE, "dictionary"),
    ]
    [found] = find_mentions("New York", [TaggedSpan(0, 8, stage.DICTIONARY_SCORE)], kb)
    assert found.finder == "dictionary"  # no higher score


def test_names_of_the_tagger_that_touch_one_of_the_base_are_kept(kb):
    found = find_mentions("Zorblax東京Zorbla", [TaggedSpan(0, 7, 0.8), TaggedSpan(9, 15, 0.7)], kb)
    assert [(one.surface, one.start, one.end, one.score, one.finder) for one in found] == [
        ("Zorblax", 0, 7, 0.8, "tagger"),
        ("東京", 7, 9, stage.DICTIONARY_SCORE, "dictionary"),
        ("Zorbla", 9, 15, 0.7, "tagger"),
    ]


def test_a_name_in_which_the_tagger_finds_one_has_its_score(kb):
    [mention] = find_mentions("New York City at night", [TaggedSpan(0, 8, 0.9)], kb)
    assert (mention.surface, mention.finder, mention.score) == ("New York City", "tagger", 0.9)
    [mention] = find_mentions("New York City Zorblax", [TaggedSpan(4, 21, 0.9)], kb)  # it reaches beyond the name
    assert (mention.surface, mention.finder) == ("New York City", "dictionary")


def test_each_name_of_the_tagger_is_judged_by_itself(kb):
    text = "Rome The - New York Zorblax"
    tagged = [(0, 4), (5, 8), (9, 10), (15, 19), (20, 27)]  # known; a function word; nothing; within one; unknown
    found = find_mentions(text, [TaggedSpan(start, end, 0.9) for start, end in tagged], kb)
    assert [(one.surface, one.finder) for one in found] == [
        ("Rome", "tagger"),
        ("New York", "tagger"),
        ("Zorblax", "tagger"),
    ]
    found = find_mentions("New York The", [TaggedSpan(0, 3, 0.9), TaggedSpan(4, 12, 0.9)], kb)
    assert [(one.surface, one.finder) for one in found] == [("New York", "dictionary")]


def test_and_between_two_names_of_the_base_makes_no_longer_name(kb):
    first, second = find_mentions("a flight from Rome and Paris in the rain", [], kb)
    assert (first.outer, second.outer) == (None, None)
    [first] = find_mentions("a concert of Rome and Zorblax in the rain", [], kb)
    assert first.outer == (13, 29)


def test_what_lies_behind_the_part_that_is_read_has_no_mentions(kb):
    assert [one.start for one in find_mentions("Rome " * 401, [], kb)] == list(range(0, 2000, 5))


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


@pytest.mark.parametrize(
    ("text", "surface"),
    [("'Rome", "Rome"), ("_Rome_", "Rome"), ("Rome\u2026", "Rome"), ("New York\u2019s", "New York"),
     ("(Rome's)", "Rome"), ("New York'", "New York"), ("\u00abRome\u00bb", "Rome")],
)  # fmt: skip
def test_a_name_of_the_tagger_with_signs_or_a_possessive_is_that_of_the_dictionary(kb, text, surface):
    [found] = find_mentions(f"at {text} now", [TaggedSpan(3, 3 + len(text), 0.9)], kb)
    assert (found.surface, found.finder, found.score, found.outer) == (surface, "tagger", 0.9, None)
    [found] = find_mentions(f"at {text} now", [TaggedSpan(3, 3 + len(text), 0.5)], kb)
    assert (found.surface, found.finder) == (surface, "dictionary")


def test_a_name_of_the_tagger_without_a_letter_or_figure_is_none(kb):
    text = "\u2026 \u2764 _ \U0001f1f3\U0001f1f4 4"
    found = find_mentions(text, [TaggedSpan(place, place + 1, 0.9) for place in range(len(text))], kb)
    assert [one.surface for one in found] == ["4"]


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


def test_the_stage_loads_what_it_is_told_and_counts_mentions(kb, monkeypatch):
    tagger, asked = object(), []

    def tag(model, texts):
        asked.append((model, list(texts)))
        return [[] for _ in texts]

    monkeypatch.setattr(stage, "load_tagger", lambda name: (tagger, name))
    monkeypatch.setattr(stage, "tag_texts", tag)
    find = stage.FindMentions(kb_path=kb.path, ner_model="some-model")
    find.setup()
    long = "Rome " * 401
    outcomes = find.run(rows("an apple in Rome", "nothing", long, "an apple in Rome"))
    assert asked == [((tagger, "some-model"), ["an apple in Rome", "nothing", long[:1999], "an apple in Rome"])]
    assert find.further_counts(outcomes) == {"mentions": 2 + 400 + 2}


def test_the_stage_says_where_its_tagger_runs(kb, monkeypatch):
    tagger = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device="cuda:1")]))
    monkeypatch.setattr(stage, "load_tagger", lambda name: tagger)
    find = stage.FindMentions(kb_path=kb.path, ner_model="some-model")
    find.setup()
    assert find.model() == "tagger on cuda:1"


def test_a_tagger_that_loses_a_text_is_an_error(kb, monkeypatch):
    monkeypatch.setattr(stage, "tag_texts", lambda tagger, texts: [[]])
    with pytest.raises(ValueError, match="shorter"):
        find_rows(rows("an apple", "Rome"), FakeTagger(), kb)


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
