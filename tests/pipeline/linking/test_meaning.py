"""How near a text is in meaning to the candidates."""

import numpy as np
import pytest

from pipeline.config import DisambiguateConfig
from pipeline.demo.sentence_encoder import copy_model
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking import meaning
from pipeline.linking.evidence import PLACE
from pipeline.linking.meaning import TextComparer, readable, surroundings, without_words
from pipeline.linking.sentences import load_sentence_encoder
from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row
from pipeline.stages.disambiguate import Disambiguate, gather_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "minilm"
    copy_model(path)
    return str(path)


@pytest.fixture(scope="module")
def kb(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("kb"))
    fillers = (
        "city in Norway",
        "make of cars",
        "kind of cheese",
        "river in Brazil",
        "string instrument",
        "garden tool",
    )
    with KnowledgeBaseWriter(path) as writer:
        for entity in (
            Entity(entity_id="Q308", label="Mercury", description="planet closest to the sun"),
            Entity(entity_id="Q925", label="Mercury", description="silver liquid metal", links=("Q1", "Q999")),
            Entity(entity_id="Q1", label="thermometer"),
            *(
                Entity(entity_id=f"Q{place}", label=f"n{place}", description=one)
                for place, one in enumerate(fillers, 10)
            ),
            Entity(entity_id="Q17", label="Baskets", description="the quantity contained in a basket", links=("Q17",)),
            Entity(entity_id="Q18", label="A Bird", description="birds"),
            Entity(entity_id="Q16", label="n16", description="bird", links=("Q10", "Q999", "Q11")),
        ):
            writer.add(entity)
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


@pytest.fixture
def comparer(model, kb):
    return TextComparer(load_sentence_encoder(model), kb)


def mention(start, end, *ids):
    return LinkedMention(
        mention=Mention(start=start, end=end, surface="?", score=1.0, finder="dictionary"),
        candidates=tuple(Candidate(entity_id=one, prior=0.5) for one in ids),
        chosen=None,
        probability=0.0,
    )


def row(text, *linked):
    return Row(pair=ImageText(image_id=text, image=b"", text=text, shard="", row=0), linked=linked)


def meaning_of(comparer, *rows):
    """Returns the meaning of the candidates of each row's mentions."""
    tables = [[np.zeros((len(one.candidates), len(EVIDENCE))) for one in each.linked] for each in rows]
    comparer.add_meaning(rows, tables)
    others = [place for name, place in PLACE.items() if name != "meaning"]
    assert not any(table[:, others].any() for of_row in tables for table in of_row)
    return [[table[:, PLACE["meaning"]].tolist() for table in of_row] for of_row in tables]


def test_the_candidate_that_the_text_speaks_of_is_nearer(comparer):
    both = mention(0, 7, "Q308", "Q925")
    [sky], [lab] = meaning_of(
        comparer,
        row("Mercury and Venus in the night sky", both),
        row("Mercury in a glass tube, for measuring the temperature", both),
    )
    assert sky[0] > sky[1] + 0.5
    assert lab[1] > lab[0] + 0.5


def test_an_entity_is_its_description_and_what_it_links_but_not_its_name(comparer, kb):
    texts = [comparer._text_of(one) for one in ("Q308", "Q925", "Q16", "Q1")]
    # Q999 is not in the base; an entity of which nothing else is known is its name.
    assert texts == ["planet closest to the sun", "silver liquid metal; thermometer", "bird; n10, n11", "thermometer"]


def test_a_description_that_repeats_the_name_is_read_without_it(comparer):
    # Names of what it links are kept whole, and an entity of which nothing else is known is its name.
    assert comparer._text_of("Q17") == "the quantity contained in a; Baskets"
    assert comparer._text_of("Q18") == "A Bird"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a Dollar, two dollars; \uff24ollar-sign", "a , two ; -sign"),  # also in capitals, plural and wide letters
        ("dollars' worth of euros", "' worth of euros"),
        ("of the petrodollar", "of the petrodollar"),  # a part of a word is another word
        ("", ""),
    ],
)
def test_words_are_left_out_in_all_their_forms(text, left):
    assert without_words(text, ["dollar", "banknote"]) == left


def test_function_words_are_kept():
    assert without_words("the organ of the nose", ["nose"]) == "the organ of the"


def test_only_the_first_links_of_an_entity_are_read(comparer, monkeypatch):
    monkeypatch.setattr(meaning, "_LINKS_MAX", 2)
    assert comparer._text_of("Q16") == "bird; n10"  # the second is not in the base


def test_meaning_counts_standard_deviations_above_the_mean_of_the_bases_entities(comparer, kb, model):
    text = "a planet"
    [[[found]]] = meaning_of(comparer, row(text, mention(0, 1, "Q308")))
    encoder = load_sentence_encoder(model)
    sample = encoder.embed([comparer._text_of(one) for one in kb.sample(512)]) @ encoder.embed([text])[0]
    near = float(encoder.embed(["planet closest to the sun"])[0] @ encoder.embed([text])[0])
    assert found == pytest.approx((near - sample.mean()) / sample.std(), abs=2e-3)


def test_what_is_far_from_the_text_has_no_meaning_rather_than_a_negative_one(comparer):
    [[[found]]] = meaning_of(comparer, row("a sonata for violin and piano", mention(0, 1, "Q925")))
    assert found == 0.0


def test_other_rows_change_nothing(comparer, model, kb):
    rows = [row(f"Mercury {word}", mention(0, 7, "Q308", "Q925")) for word in ("rises", "is poisonous", "orbits")]
    together = meaning_of(comparer, *rows)
    fresh = [meaning_of(TextComparer(load_sentence_encoder(model), kb), one)[0] for one in rows]
    assert together == fresh


def test_entities_are_embedded_once(comparer, monkeypatch):
    embedded = []
    embed = comparer._encoder.embed
    monkeypatch.setattr(comparer._encoder, "embed", lambda texts: embedded.extend(texts) or embed(texts))
    one = row("Mercury", mention(0, 7, "Q308"))
    meaning_of(comparer, one)
    assert embedded.count("planet closest to the sun") == 2  # in the sample, and as a candidate
    embedded.clear()
    meaning_of(comparer, one)
    assert embedded == ["Mercury"]


class Encoder:
    """Embeds each text as two numbers, and loses some texts."""

    def __init__(self, lost=""):
        self.lost = lost
        self.texts = []

    def embed(self, texts):
        self.texts += texts
        return np.array([[1.0, len(text)] for text in texts if text != self.lost], np.float32).reshape(-1, 2)


@pytest.mark.parametrize(("max_bytes", "times"), [(2 * (8 + 300), 1), (2 * (8 + 300) - 2, 2)])
def test_an_entity_takes_two_floats_and_300_bytes_of_the_cache_which_keeps_none_of_more_than_half(
    kb, monkeypatch, max_bytes, times
):
    monkeypatch.setattr(meaning, "_CACHE_BYTES", max_bytes)
    encoder = Encoder()
    comparer = TextComparer(encoder, kb)
    one = row("Mercury", mention(0, 7, "Q308"))
    for _ in range(2):
        meaning_of(comparer, one)
    assert encoder.texts.count("planet closest to the sun") == 1 + times  # 1 of the sample


@pytest.mark.parametrize("lost", ["Mercury", "silver liquid metal; thermometer"])
def test_an_encoder_that_loses_a_text_is_an_error(kb, lost):
    with pytest.raises(ValueError, match="shorter"):
        meaning_of(TextComparer(Encoder(lost), kb), row("Mercury", mention(0, 7, "Q308", "Q925")))


@pytest.mark.parametrize("evidence", [[], [[]]])
def test_evidence_of_another_number_than_the_rows_or_mentions_is_an_error(kb, evidence):
    with pytest.raises(ValueError, match="shorter"):
        TextComparer(Encoder(), kb).add_meaning([row("Mercury", mention(0, 7, "Q308"))], evidence)


def test_mentions_without_candidates_are_not_read(comparer, monkeypatch):
    monkeypatch.setattr(comparer._encoder, "embed", None)  # not called
    assert meaning_of(comparer, row("Zorblax", mention(0, 7)), row("nothing")) == [[[]], []]


def test_a_mention_is_read_with_its_block_and_those_beside_it():
    text = "".join(f"{place:04d}" for place in range(0, 1000, 4)) * 2  # each four characters are their place
    assert surroundings(text, mention(0, 5)) == text[:400]
    assert surroundings(text, mention(200, 400)) == text[0:600]
    assert surroundings(text, mention(399, 401)) == text[0:800]
    assert surroundings(text, mention(1990, 1999)) == text[1600:2000]


def test_the_stage_adds_the_meaning_and_says_where_it_comes_from(model, kb):
    stage = Disambiguate(kb.path, DisambiguateConfig(sentence_encoder=model))
    stage.setup()
    assert stage.model() == "sentence encoder on cpu"
    assert stage.weights.reads_meaning
    [found] = stage.run([row("Mercury and Venus in the night sky", mention(0, 7, "Q308", "Q925"))])
    first, second = (one.evidence[PLACE["meaning"]] for one in found.linked[0].candidates)
    assert first > second + 0.5


def test_without_an_encoder_there_is_no_meaning(kb):
    stage = Disambiguate(kb.path)
    stage.setup()
    assert stage.model() == "" and not stage.weights.reads_meaning
    [[table]] = gather_rows([row("Mercury", mention(0, 7, "Q308"))], kb, frozenset(EVIDENCE), None)
    assert table[0, PLACE["meaning"]] == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Iceland\u2744\ufe0fin\U0001f1f3winter", ["iceland", "\u2744", "in", "\U0001f1f3", "winter"]),
        ("\u2605Puma\u2665shoe\u2122fan\u2192end", ["\u2605", "puma", "\u2665", "shoe", "tm", "fan", "\u2192", "end"]),
        (
            "\uff34\uff4f\uff59\uff4f\uff54\uff41 \U0001d5dd\U0001d5ee\U0001d5fd\U0001d5ee\U0001d5fb",
            ["toyota", "japan"],
        ),
        ("Norway\u00b9 1\ufe0f\u20e3Norway", ["norway", "1", "1", "\u20e3", "norway"]),
        ("New  York", ["new", "york"]),
        ("caf\u00e9 \u0939\u093f\u0928\u094d\u0926\u0940", ["caf\u00e9", "\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("", []),
    ],
)
def test_an_encoder_reads_plain_letters_and_words_that_no_symbol_touches(text, words):
    assert readable(text).casefold().split() == words


def test_symbols_and_styles_of_letters_do_not_change_what_a_text_is_near_to(comparer, kb):
    def near(text):
        return meaning_of(comparer, row(text, mention(0, 7, "Q308", "Q925")))

    assert near("Mercury \u2605 metal \u2605 silver") == near("Mercury\u2605metal\u2605silver")
    assert near("Mercury metal") == near("\uff2dercury \U0001d426\U0001d41e\U0001d42d\U0001d41a\U0001d425")
