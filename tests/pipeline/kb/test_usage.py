"""Words beside names, counted by hand."""

import json
import math
import struct
import sys

import pytest

from pipeline.kb.bag_of_words import hash_word
from pipeline.kb.build.count_usage import count_usage
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.kb.usage import (
    KINDS_KEY,
    SEVERAL,
    Usage,
    _entity_bytes,
    _word_bytes,
    entity_key,
    name_key,
    word_key,
    words_beside,
)


def keys(*words):
    return [hash_word(word) for word in words]


def test_words_beside_a_name_are_distinct_without_its_own_and_without_file_numbers():
    text = "Apple tart: the apples and tarts, tart IMG2043 64px"
    assert words_beside(text, 6, 10) == keys("apple")
    assert words_beside(text, 0, 5) == keys("tart")


def test_words_that_touch_a_name_are_beside_it():
    assert words_beside("\u6771\u4eac\u5854", 1, 2) == keys("\u6771", "\u5854")  # no blanks part them
    assert words_beside("Shellfish", 0, 5) == []  # but a word that a name is a part of is not


def test_the_keys_in_the_store_are_those_of_bases_that_were_built_earlier():
    assert (entity_key("Q\u00e9"), word_key(0x102)) == (b"entity:Q\xc3\xa9", b"word:\x02\x01\x00\x00")
    assert KINDS_KEY == b"kinds"


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


def test_a_word_beside_several_names_of_an_entity_counts_under_each_of_them(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="A1", label="ram", aliases=("aries",)))
        texts = ["ram, wool, horns", "aries, wool"]
        writer.commit(source="x", source_sha256="", usage=lambda kb: count_usage(texts, kb))
    usage = KnowledgeBase.open(str(tmp_path)).usage
    shares = [usage.seen_share("A1", keys("wool", "horn"), name_key(name)) for name in ("ram", "aries", "sheep")]
    assert shares == [0.5, 1.0, 1.0]


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
    assert name_key("") == 1 != SEVERAL == 0  # the hash of "" would be 0


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


def test_the_memory_of_what_is_kept_is_neither_underrated_nor_far_overrated():
    numbers = {1 << 31 | place: 1 << 31 | place for place in range(1000)}
    kinds = {f"kind{place}": number for place, number in enumerate(numbers)}
    num_bytes = sum(map(sys.getsizeof, numbers))
    for words, least in [
        (_entity_bytes("Q1", numbers), sys.getsizeof(numbers) + 2 * num_bytes),
        (_word_bytes(1, (9, kinds)), sys.getsizeof(kinds) + num_bytes),  # the names of kinds are shared
    ]:
        assert least + 200 < words < least * 1.1 + 400
    assert 200 < _entity_bytes("Q1", {}) < 500 and 200 < _word_bytes(1, (0, {})) < 500


def counted(num_entities, kinds, words, entities=()):
    """Returns the usage of a base with these counts.

    Args:
        num_entities: that were counted.
        kinds: name -> number of entities.
        words: key -> (number of entities, kind -> number of entities).
        entities: id -> keys of its words.
    """
    place = {kind: position for position, kind in enumerate(kinds)}
    store = {
        KINDS_KEY: json.dumps({"num_texts": 9, "num_entities": num_entities, "kinds": list(kinds.items())}).encode()
    }
    for word, (beside, of_kinds) in words.items():
        numbers = [beside, *(one for kind, count in of_kinds.items() for one in (place[kind], count))]
        store[word_key(word)] = struct.pack(f"<{len(numbers)}I", *numbers)
    for entity_id, own in dict(entities).items():
        store[entity_key(entity_id)] = struct.pack(f"<{2 * len(own)}I", *(one for word in own for one in (word, 7)))
    return Usage(store.get)


def test_of_several_types_a_word_counts_for_the_one_that_it_makes_likeliest():
    usage = counted(20, {"animal": 5, "food": 10}, {1: (4, {"food": 4}), 2: (4, {"animal": 4})})
    chance = 4.5 / 21
    animal, food = math.log((4 + 10 * chance) / (15 * chance)), math.log((4 + 10 * chance) / (20 * chance))
    for types in ("animal", "food"), ("food", "animal"), ("unheard", "food", "animal"):
        assert usage.kind_evidence("Q1", types, [1]) == pytest.approx(food)
        assert usage.kind_evidence("Q1", types, [2]) == pytest.approx(animal)
        assert usage.kind_evidence("Q1", types, [1, 2]) == pytest.approx((food + animal) / 2)
    assert usage.kind_evidence("Q1", ("animal",), [1]) == usage.kind_evidence("Q1", ("unheard",), [1]) == 0.0


def test_a_word_has_a_count_for_each_of_several_kinds():
    usage = counted(20, {"animal": 5, "food": 10}, {1: (6, {"animal": 1, "food": 6})})
    chance = 6.5 / 21
    assert usage.kind_evidence("Q1", ("food",), [1]) == pytest.approx(math.log((6 + 10 * chance) / (20 * chance)))
    assert usage.kind_evidence("Q1", ("animal",), [1]) == 0.0


def test_counts_that_are_cut_short_are_an_error():
    store = {
        KINDS_KEY: json.dumps({"num_texts": 9, "num_entities": 9, "kinds": [["animal", 9]]}).encode(),
        word_key(1): struct.pack("<2I", 1, 0),  # a kind without its number
    }
    with pytest.raises(ValueError):
        Usage(store.get).rarity(1)


def test_a_word_says_three_nats_at_most_for_a_kind_or_against_it():
    usage = counted(10_000, {"animal": 1000, "tool": 3}, {1: (3, {"tool": 3}), 2: (3, {"animal": 3}), 3: (9, {})})
    chance = 3.5 / 10_001
    assert math.log((3 + 10 * chance) / (13 * chance)) > 3
    assert usage.kind_evidence("Q1", ("tool",), [1]) == 3.0
    speaks = math.log((3 + 10 * chance) / (1010 * chance))
    assert math.log(10 / 1010) < -3  # what word 3 says, which no animal has
    assert usage.kind_evidence("Q1", ("animal",), [2] * 4 + [3]) == pytest.approx((4 * speaks - 3) / 5)


@pytest.mark.parametrize(
    ("num_kind", "own", "tells"),
    [(3, (), True), (2, (), False), (4, (1,), True), (3, (1,), False), (4, (2,), True), (3, (2,), False)],
)
def test_a_kind_tells_something_from_three_other_entities_on(num_kind, own, tells):
    # The entity itself, if it was counted, is left out of its kind, with the word that is asked for or without.
    usage = counted(
        20, {"animal": num_kind}, {1: (3, {"animal": 3}), 2: (1, {"animal": 1})}, {"Q1": own} if own else {}
    )
    assert (usage.kind_evidence("Q1", ("animal",), [1]) > 0) == tells


def test_an_entity_that_was_counted_is_left_out_of_each_number():
    words = {1: (3, {"animal": 3}), 2: (1, {"animal": 1})}
    usage = counted(20, {"animal": 6}, words, {"Q1": (1, 2), "Q2": (2,)})
    # The word is its own too: 2 of 19 others have it, all among the 5 other animals.
    chance = 2.5 / 20
    assert usage.kind_evidence("Q1", ("animal",), [1]) == pytest.approx(math.log((2 + 10 * chance) / (15 * chance)))
    # Only another word is: 3 of 19 others have it.
    chance = 3.5 / 20
    assert usage.kind_evidence("Q2", ("animal",), [1]) == pytest.approx(math.log((3 + 10 * chance) / (15 * chance)))
    # A word beside no other entity says nothing, one beside one does.
    assert usage.kind_evidence("Q2", ("animal",), [2]) == 0.0
    chance = 1.5 / 21
    assert usage.kind_evidence("Q3", ("animal",), [2]) == pytest.approx(math.log((1 + 10 * chance) / (16 * chance)))
