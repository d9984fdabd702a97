"""Words beside names, counted by hand."""

import math

import pytest

from pipeline.kb.bag_of_words import hash_word
from pipeline.kb.build.count_usage import count_usage
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.kb.usage import name_key, words_beside


def keys(*words):
    return [hash_word(word) for word in words]


def test_words_beside_a_name_are_distinct_without_its_own_and_without_file_numbers():
    text = "Apple tart: the apples and tarts, tart IMG2043 64px"
    assert words_beside(text, 6, 10) == keys("apple")
    assert words_beside(text, 0, 5) == keys("tart")


@pytest.fixture
def kb(tmp_path):
    """Four animals and two tools; "ram" is an animal, called aries too, and a tool."""
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for entity_id, label, aliases, kind in [
            ("A1", "ram", ("aries",), "animal"),
            ("A2", "lion", (), "animal"),
            ("A3", "tiger", (), "animal"),
            ("A4", "bear", (), "animal"),
            ("T1", "ram", (), "tool"),
            ("T2", "saw", (), "tool"),
        ]:
            writer.add(Entity(entity_id=entity_id, label=label, aliases=aliases, types=(kind,)))
        texts = [
            "aries, horns, zoo",
            "lion, zoo",
            "lion, zoo, mane",
            "tiger, zoo",
            "bear, honey",
            "saw, wood",
            "ram, wood",
        ]
        manifest = writer.commit(source="x", source_sha256="", usage=lambda kb: count_usage(texts, kb))
    assert manifest["num_texts"] == 7
    return KnowledgeBase.open(str(tmp_path))


def test_an_entity_is_known_by_words_beside_its_other_names_only(kb):
    words = keys("horn", "zoo", "wood", "unheard")
    assert kb.usage.seen_share("A1", words, name_key("ram")) == 2 / 4
    assert kb.usage.seen_share("A1", words, name_key("Aries")) == 0.0
    assert kb.usage.seen_share("T1", words, name_key("hammer")) == 0.0  # "ram" names two: it counts for neither
    assert kb.usage.seen_share("unknown", words, 1) == kb.usage.seen_share("A1", [], 1) == 0.0


def test_a_word_beside_many_entities_is_less_rare(kb):
    # Five entities were counted: "ram" alone means two. "zoo" is beside three of them, "honey" beside one.
    zoo, honey, unheard = (kb.usage.rarity(one) for one in keys("zoo", "honey", "unheard"))
    assert zoo == pytest.approx(math.log(1 + (5 - 3 + 0.5) / (3 + 0.5)))
    assert honey == pytest.approx(math.log(1 + (5 - 1 + 0.5) / (1 + 0.5)))
    assert unheard == pytest.approx(math.log(1 + (5 + 0.5) / 0.5))


def test_without_counted_texts_every_word_is_as_rare_as_can_be(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="A1", label="ram"))
        writer.commit(source="x", source_sha256="")
    assert KnowledgeBase.open(str(tmp_path)).usage.rarity(1) == math.inf


def test_forms_of_one_name_are_one_name():
    forms = [["jaguar", "jaguars", "Jaguar's", "the jaguar"], ["foo", "Foo Ltd"], ["cherry", "cherries"]]
    assert [len({name_key(form) for form in group}) for group in forms] == [1, 1, 1]
    assert name_key("jaguar") != name_key("cherry")


def test_a_name_alone_counts_for_nothing_and_what_lies_far_down_a_page_is_not_read(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="A1", label="ram", types=("animal",)))
        texts = ["ram", "ram, " + "filler " * 400 + "horns"]
        writer.commit(source="x", source_sha256="", usage=lambda kb: count_usage(texts, kb))
    usage = KnowledgeBase.open(str(tmp_path)).usage
    assert usage.seen_share("A1", keys("filler", "horn"), 1) == 0.5


def test_a_word_is_evidence_for_the_kind_with_whose_other_entities_it_occurs(kb):
    # Counted: A1, A2, A3, A4, T2. "zoo" occurs with A1, A2, A3. For A1, itself left out: 4 entities, 2 with "zoo",
    # 3 other animals of which 2 have it; 10 entities' worth of smoothing.
    chance = (2 + 0.5) / (4 + 1)
    expected = math.log((2 + 10 * chance) / ((3 + 10) * chance))
    assert kb.usage.kind_evidence("A1", ("animal",), keys("zoo")) == pytest.approx(expected)
    # T1 was never counted, and but one other tool was: too few to tell.
    assert kb.usage.kind_evidence("T1", ("tool",), keys("zoo")) == 0.0
    # A word never heard says nothing, and halves the mean.
    assert kb.usage.kind_evidence("A1", ("animal",), keys("zoo", "unheard")) == pytest.approx(expected / 2)
    # "wood" is beside a tool and no animal. That takes from what speaks for the animal, and alone it says nothing.
    mixed = kb.usage.kind_evidence("A1", ("animal",), [*keys("zoo") * 9, *keys("wood")])
    assert 0.0 < mixed < expected * 9 / 10
    assert kb.usage.kind_evidence("A1", ("animal",), keys("wood")) == 0.0
    assert kb.usage.kind_evidence("A1", ("animal",), []) == kb.usage.kind_evidence("A1", (), keys("zoo")) == 0.0


def test_without_texts_nothing_is_known(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="A1", label="ram", types=("animal",)))
        writer.commit(source="x", source_sha256="")
    usage = KnowledgeBase.open(str(tmp_path)).usage
    assert usage.seen_share("A1", keys("zoo"), 1) == usage.kind_evidence("A1", ("animal",), keys("zoo")) == 0.0
