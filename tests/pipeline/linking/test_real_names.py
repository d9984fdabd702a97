"""The shipped weights on texts of the kinds that a linker of captions gets wrong: each line was once linked wrongly.

The base is small but made as a real one is: names with their rivals, popularities like those of the demo, and
descriptions that write common words small and names with a capital. The tagger is the demo's. No sentence encoder is
there: what the words say has to do.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import DisambiguateConfig
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.weights import weights_of
from pipeline.schema import ImageText, Row
from pipeline.sources.clean import clean_text
from pipeline.stages.disambiguate import disambiguate_row
from pipeline.stages.find_mentions import find_mentions
from pipeline.stages.propose_candidates import propose_row
from pipeline.tagger.load import load_tagger, tag_texts
from pipeline.tagger.train import TrainTaggerConfig, train_tagger

NAMES = (  # label, popularity, aliases, description
    ("Brazil", 900, (), "country in South America"),
    ("New Zealand", 500, ("\u30cb\u30e5\u30fc\u30b8\u30fc\u30e9\u30f3\u30c9",), "island country in the Pacific"),
    ("Norway", 900, (), "country in the north of Europe"),
    ("South Africa", 530, (), "country in Africa"),
    ("United States", 3300, ("U.S.A.", "USA"), "country in North America"),
    ("Volvo", 60, (), "maker of cars and trucks"),
    ("Honda", 100, (), "maker of cars and motorcycles"),
    ("Marks & Spencer", 65, ("M&S", "M&S Food"), "chain of shops"),
    ("AT&T", 60, (), "telephone company"),
    ("AMP Limited", 8, ("AMP",), "bank"),
    ("Wendy's", 35, (), "chain of restaurants"),
    ("Citro\u00ebn", 80, (), "maker of cars"),
    ("H&M", 60, (), "chain of shops for clothes"),
    ("Best Buy", 30, (), "chain of shops for televisions"),
    ("H.I.S.", 6, (), "travel agency"),
    ("Thyme", 3, (), "restaurant"),
    ("Hall Tabakwaren", 3, ("Hall",), "shop for tobacco"),
    ("Carroll Motor Fuels", 3, ("Carroll", "Carroll's"), "chain of gas stations"),
    ("Sur la table", 3, (), "shop for kitchens"),
)
DESCRIPTIONS = (  # of other entities: they show how a word is written
    "river in Brazil",
    "airport in Brazil",
    "town in Norway",
    "city of the USA, with a port",
    "any group of people",
    "small group that plays music",
    "herb of the kind of thyme",
    "dish with thyme and salt",
    "large hall of a house",
    "hall in which people meet",
    "best thing of a week",
    "to buy food for a week",
    "car such as a Volvo or a Honda",
    "truck that Volvo made",
    "motorcycle that Honda made",
    "story by Lewis Carroll",
)


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        for label, popularity, aliases, description in NAMES:
            entity = Entity(
                entity_id=label, label=label, popularity=popularity, aliases=aliases, description=description
            )
            writer.add(entity)
        writer.add(Entity(entity_id="park", label="national park", description="land that a state protects"))
        for number, description in enumerate(DESCRIPTIONS):
            writer.add(Entity(entity_id=f"thing {number}", label=f"thing {number}", description=description))
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tagger(train_tagger(TrainTaggerConfig(output=str(tmp_path_factory.mktemp("tagger")))))


def linked(text: str, kb: KnowledgeBase, tagger: Any, config: DisambiguateConfig | None = None) -> list[str | None]:
    """Returns what the text's mentions are linked to by default, in their order, without those that end as NIL."""
    pair = ImageText(image_id="p", image=b"", text=clean_text(text), shard="s", row=0)
    [spans] = tag_texts(tagger, [pair.text])
    row = Row(pair=pair, mentions=find_mentions(pair.text, spans, kb))
    config = config or DisambiguateConfig()
    answered = disambiguate_row(propose_row(row, kb), kb, config, weights_of(config))
    return [one.chosen for one in answered.linked if one.chosen is not None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Brazil", ["Brazil"]),
        ("Brazil beach at dawn with palm trees", ["Brazil"]),
        ("The climate is good in New Zealand", ["New Zealand"]),
        ("Volvo truck parked beside a lake in Norway", ["Volvo", "Norway"]),
        ("wendys", ["Wendy's"]),
        ("#SouthAfrica", ["South Africa"]),
        ("U.S.A.", ["United States"]),
        ("H & M", ["H&M"]),
        ("AT&amp;T logo", ["AT&T"]),
        ("Marks &amp;amp; Spencer food hall", ["Marks & Spencer"]),
        ("M&amp;S food hall", ["Marks & Spencer"]),
    ],
)
def test_a_name_is_linked_whatever_stands_beside_it_and_however_it_is_spelled(
    text: str, expected: list[str], kb: KnowledgeBase, tagger: Any
) -> None:
    assert linked(text, kb, tagger) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u30cb\u30e5\u30fc\u30b8\u30fc\u30e9\u30f3\u30c9\u306e\u56fd\u65d7", "New Zealand"),
        ("Citroen", "Citro\u00ebn"),
    ],
)
def test_a_name_that_the_tagger_does_not_find_is_likelier_than_none(
    text: str, expected: str, kb: KnowledgeBase, tagger: Any
) -> None:
    assert linked(text, kb, tagger, DisambiguateConfig(probability_min=0.5)) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "A lake in Banff National Park",
        "Portrait of Lewis Carroll's sister",
        "The singer and his group",
        "A thyme plant",
        "Best buy of the week",
        "The hall of a castle",
        "des fleurs sur la table",
    ],
)
def test_parts_of_longer_names_and_common_words_are_no_names(text: str, kb: KnowledgeBase, tagger: Any) -> None:
    assert linked(text, kb, tagger) == []
