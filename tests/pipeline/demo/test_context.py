from pipeline.demo.context import ContextWords, context_words, split_in_two
from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex, stems_of
from pipeline.demo.selection import half_of


def test_words_that_the_base_holds_as_names_or_types_are_left_out():
    index = NameIndex({"bird": {"emoji:1": 1.0}}, types=["wild animal"])
    words = ["bird", "birds", "wild animals", "thanksgiving", "x1", "of", "feathered friend"]
    assert context_words(words, "emoji:2", index) == ["thanksgiving", "feathered friend"]
    assert context_words(["feathered friend", "roast"], "emoji:2", index, types=["feather", "friend"]) == ["roast"]


def test_a_word_that_a_brand_bears_stays_where_it_is_of_the_entitys_half():
    index = NameIndex({"orchard": {"Q1": 1.0}}, brands=["Q1"])
    halves = {entity_id: half_of(0, entity_id) for entity_id in ("emoji:1", "emoji:2", "emoji:3", "emoji:4")}
    assert set(halves.values()) == {"fit", "measure"}
    for entity_id, half in halves.items():
        kept = context_words(["orchard", "Orchard"], entity_id, index, seed=0)
        assert kept == (["orchard"] if half == half_of(0, "orchard") else [])


def test_the_two_parts_share_no_stem_and_are_about_equal():
    words = [*(f"word{n}" for n in range(40)), "church bell", "church bells", "bell tower", "tower"]
    parts = split_in_two(words, "seed")
    assert set(parts) == set(words)
    assert len({parts[w] for w in ("church bell", "church bells", "bell tower", "tower")}) == 1
    stems = [{s for w in words if parts[w] == part for s in stems_of(w)} for part in (0, 1)]
    assert not stems[0] & stems[1]
    assert 16 <= sum(parts.values()) <= 28
    assert parts == split_in_two(list(reversed(words)), "seed")


def test_words_beside_a_name_are_of_the_part_and_repeat_no_word_of_the_name():
    entity = CorpusEntity(
        id="emoji:1",
        label="church bell",
        description="",
        aliases=("ring",),
        keywords=("ringing", "bells", "brass", "loud"),
        categories=("sound",),
        related=("tower", "hollow"),
    )
    context = ContextWords({"emoji:1": entity}, {"emoji:1": "emoji"}, NameIndex({}), seed=0)
    both = context.beside("emoji:1", "church bell", None)
    assert both.keywords == ("ringing", "brass", "loud") and both.categories == ("sound",)
    assert both.related == ("tower", "hollow") and len(both) == 6
    parts = [context.beside("emoji:1", "ring", part) for part in (0, 1)]
    said = [{*words.categories, *words.keywords, *words.related} for words in parts]
    assert not said[0] & said[1]
    assert said[0] | said[1] == {"ringing", "bells", "brass", "loud", "sound", "tower", "hollow"}


def test_a_logos_categories_bring_words_for_what_it_deals_in():
    entity = CorpusEntity(id="Q1", label="Shell", description="", types=("fuel",))
    context = ContextWords({"Q1": entity}, {"Q1": "logo"}, NameIndex({}), seed=0)
    assert context.beside("Q1", "Shell", None).categories == ("petrol station", "gasoline", "oil")
