import random

from pipeline.demo.composer import Composer
from pipeline.demo.context import ContextWords
from pipeline.demo.entities import CorpusEntity
from pipeline.demo.name_index import NameIndex, stems_of
from pipeline.demo.selection import half_of, name_weights

WORDS = ("zoo", "paw", "fur", "lair", "cub", "hunt", "tusk", "mane", "roar", "prey", "claw", "herd")
LION = CorpusEntity(id="emoji:1", label="lion", description="", aliases=("big cat",), keywords=WORDS)
BANK = CorpusEntity(id="Q1", label="Lion", description="", types=("bank",))
PEAR = CorpusEntity(id="emoji:2", label="pear", description="", aliases=("conference pear",), keywords=WORDS)


class NoStrays:
    def draw(self, half, rng):
        return []


def composer(*others: CorpusEntity) -> Composer:
    entities = {e.id: e for e in (LION, BANK, PEAR)}
    index = NameIndex(name_weights([*entities.values(), *others]), brands=[e.id for e in others])
    kinds = {"emoji:1": "emoji", "emoji:2": "emoji", "Q1": "logo"}
    context = ContextWords(entities, kinds, index, seed=0)
    return Composer(entities, kinds, index, context, NoStrays(), random.Random(0), seed=0)


def said(captions) -> set[str]:
    return {stem for caption in captions for tag in caption.tags for stem in stems_of(tag)}


def test_names_are_those_that_an_entity_shares_or_has_to_itself():
    assert composer().names("emoji:1", ambiguous=True) == ["lion"]
    assert composer().names("emoji:1", ambiguous=False) == ["big cat"]


def test_every_second_text_of_a_shared_name_says_what_no_text_of_the_other_names_says():
    one = composer()
    own = [one.about("emoji:1", ["big cat"], style="tags", truth="emoji:1") for _ in range(60)]
    shared = [one.about("emoji:1", ["lion"], style="tags", truth="emoji:1") for _ in range(60)]
    assert all(caption.mentions[0].ambiguous for caption in shared)
    unseen = [caption for caption in shared if not said([caption]) & said(own)]
    assert len(unseen) == 30 and said(unseen) == set(WORDS) - said(own)
    assert said(shared) == set(WORDS)


def test_an_entity_that_shares_no_name_may_use_all_its_words():
    one = composer()
    texts = [one.about("emoji:2", ["pear"], style="tags", truth="emoji:2") for _ in range(60)]
    assert said(texts) == set(WORDS)


def test_only_names_of_things_come_in_the_plural():
    one = composer()
    nouns = [one.about("emoji:1", ["big cat"], style="plain", truth="emoji:1") for _ in range(120)]
    brands = [one.about("Q1", ["lion"], style="plain", truth="Q1") for _ in range(120)]
    assert any("big cats" in caption.text.casefold() and "plural" in caption.spelling for caption in nouns)
    assert not any("plural" in caption.spelling for caption in brands)


def test_a_tag_that_a_brand_bears_is_a_stray_name():
    fur = CorpusEntity(id="Q3", label="Fur", description="")
    assert half_of(0, "fur") == half_of(0, "emoji:2")
    one = composer(fur)
    texts = [one.about("emoji:2", ["pear"], style="tags", truth="emoji:2") for _ in range(60)]
    assert any("fur" in caption.tags for caption in texts)
    for caption in texts:
        strays = [(caption.text[stray.start : stray.end].casefold(), stray.kind) for stray in caption.strays]
        assert strays == [("fur", "word")] * ("fur" in caption.tags)


def test_no_longer_name_of_the_base_swallows_the_one_that_a_text_is_about():
    longer = CorpusEntity(id="Q2", label="pear icon", description="")
    one, other = composer(), composer(longer)
    plain = [one.about("emoji:2", ["pear"], style="plain", truth="emoji:2").text.casefold() for _ in range(80)]
    kept = [other.about("emoji:2", ["pear"], style="plain", truth="emoji:2").text.casefold() for _ in range(80)]
    assert any("pear icon" in text for text in plain)
    assert not any("pear icon" in text for text in kept)


def test_a_text_about_an_entity_that_the_base_lacks_has_no_answer():
    caption = composer().about("emoji:1", ["lion"], style="tags", truth=None)
    (mention,) = caption.mentions
    assert mention.entity_id is None and mention.ambiguous and mention.kind == "emoji"
    assert len(caption.tags) >= 2
