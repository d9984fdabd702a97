"""The right one of several meanings, or none of them."""

import dataclasses
import math

import pytest

from pipeline.kb.build.count_usage import count_usage
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import Candidate, ImageText, LinkedMention, Mention, Row
from pipeline.stages import disambiguate
from pipeline.stages.disambiguate import DisambiguateConfig, disambiguate_row, relatedness

CONFIG = DisambiguateConfig()


@pytest.fixture(scope="module")
def kb(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("kb"))
    country, state = "country in the Caucasus, east of the Black Sea", "federal state in the south of the United States"
    with KnowledgeBaseWriter(path) as writer:
        for entity in [
            Entity(entity_id="Q230", label="Georgia", description=country, types=("country",), links=("Q994",)),
            Entity(entity_id="Q1428", label="Georgia", description=state, types=("state",), links=("Q23556",)),
            Entity(entity_id="Q994", label="Tbilisi", description="capital city", types=("city",)),
            Entity(entity_id="Q23556", label="Atlanta", description="city of airports", types=("city",)),
            Entity(entity_id="Q7", label="hotel", description="house that lodges guests at a beach"),
            *(Entity(entity_id=f"F{i}", label=f"filler{i}", description="plain thing") for i in range(40)),
        ]:
            writer.add(entity)
        writer.commit(source="x", source_sha256="")
    return KnowledgeBase.open(path)


def linked(text, surface, **priors):
    start = text.index(surface)
    mention = Mention(start=start, end=start + len(surface), surface=surface, score=1.0, finder="tagger")
    candidates = tuple(Candidate(entity_id=entity_id, prior=prior) for entity_id, prior in priors.items())
    return LinkedMention(mention=mention, candidates=candidates, chosen=None, probability=0.0)


def answer(text, kb, *mentions, config=CONFIG, scorers=()):
    pair = ImageText(image_id="p", image=b"", text=text, shard="s", row=0)
    return disambiguate_row(Row(pair=pair, linked=mentions), kb, config, scorers).linked


def test_without_context_the_prior_decides(kb):
    [one] = answer("Georgia", kb, linked("Georgia", "Georgia", Q230=0.7, Q1428=0.3))
    # Priors to the power of their weight against exp(NIL): bias, one word, no context, no doubt of the finder.
    nil = math.exp(CONFIG.nil_bias + CONFIG.nil_word_weight)
    weight = 0.7**CONFIG.prior_weight
    assert one.chosen == "Q230"
    assert one.probability == pytest.approx(weight / (weight + 0.3**CONFIG.prior_weight + nil))


def test_a_name_of_several_words_is_less_likely_to_be_nil(kb):
    # As above, with a name of two words: half the weight of a single one.
    [one] = answer("Old Georgia", kb, linked("Old Georgia", "Old Georgia", Q230=0.7, Q1428=0.3))
    nil = math.exp(CONFIG.nil_bias + CONFIG.nil_word_weight / 2)
    weight, other = 0.7**CONFIG.prior_weight, 0.3**CONFIG.prior_weight
    assert one.probability == pytest.approx(weight / (weight + other + nil))


def test_the_text_outweighs_the_prior(kb):
    text = "Georgia, federal state in the United States"
    [one] = answer(text, kb, linked(text, "Georgia", Q230=0.8, Q1428=0.2))
    assert one.chosen == "Q1428"
    scores = {candidate.entity_id: candidate.text_score for candidate in one.candidates}
    assert scores["Q1428"] == 1.0 and scores["Q230"] == 0.0


def test_a_linked_entity_in_the_text_decides(kb):
    text = "Georgia and Atlanta"
    # Without the links' words in the documents, coherence alone has to do it.
    config = dataclasses.replace(CONFIG, text_weight=0.0, nil_context_weight=0.0, coherence_weight=3.0)
    georgia, atlanta = answer(
        text, kb, linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=1.0), config=config
    )
    assert (georgia.chosen, atlanta.chosen) == ("Q1428", "Q23556")
    coherence = {candidate.entity_id: candidate.coherence for candidate in georgia.candidates}
    assert coherence["Q1428"] > 0.5 and coherence["Q230"] == 0.0


def test_a_context_that_fits_no_candidate_is_nil(kb):
    text = "Georgia, hotel that lodges guests at the beach"
    [one] = answer(text, kb, linked(text, "Georgia", Q230=0.6, Q1428=0.4))
    assert one.chosen is None
    assert one.probability > 0.5


def test_a_mention_without_candidates_is_nil_for_sure(kb):
    [one] = answer("Zorblax", kb, linked("Zorblax", "Zorblax"))
    assert (one.chosen, one.probability, one.candidates) == (None, 1.0, ())


def test_what_texts_say_beside_the_entity_and_its_kind_is_evidence(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for entity_id, label, aliases, kind in [
            ("Q1", "spiral shell", ("shell",), "animal"),
            ("Q2", "Shell", (), "fuel"),
            *((f"A{i}", f"beast{i}", (), "animal") for i in range(4)),
            *((f"F{i}", f"station{i}", (), "fuel") for i in range(4)),
        ]:
            writer.add(Entity(entity_id=entity_id, label=label, aliases=aliases, types=(kind,), popularity=9.0))
        texts = [
            "spiral shell, seaside",
            *(f"beast{i}, zoo" for i in range(4)),
            *(f"station{i}, road" for i in range(4)),
        ]
        writer.commit(source="x", source_sha256="", usage=lambda kb: count_usage(texts, kb))
    kb = KnowledgeBase.open(str(tmp_path))
    both = {"Q1": 0.4, "Q2": 0.6}
    for text, chosen in [("Shell, seaside", "Q1"), ("Shell, zoo", "Q1"), ("Shell, road", "Q2"), ("Shell", "Q2")]:
        [one] = answer(text, kb, linked(text, "Shell", **both), config=dataclasses.replace(CONFIG, nil_bias=-20.0))
        assert one.chosen == chosen, text
    [one] = answer("Shell, seaside", kb, linked("Shell, seaside", "Shell", **both))
    assert [candidate.seen_share for candidate in one.candidates] == [1.0, 0.0]


def test_words_about_the_picture_say_nothing(kb):
    text = "Georgia icon png download 64px vector"
    [one] = answer(text, kb, linked(text, "Georgia", Q230=0.6, Q1428=0.4))
    assert one.chosen == "Q230"


def test_probabilities_and_nil_sum_to_one(kb):
    # No context: shares of 0.6 and 0.4 to the power of the prior's weight, and of exp(0), NIL made the likeliest.
    config = dataclasses.replace(CONFIG, nil_bias=0.0, nil_word_weight=0.0)
    [one] = answer("Georgia", kb, linked("Georgia", "Georgia", Q230=0.6, Q1428=0.4), config=config)
    assert one.chosen is None
    assert sum(candidate.score for candidate in one.candidates) + one.probability == pytest.approx(1.0)
    assert one.probability == pytest.approx(1 / (1 + 0.6**config.prior_weight + 0.4**config.prior_weight))


def test_in_a_list_of_hundreds_of_names_only_the_surest_inform_the_others(kb, monkeypatch):
    text = "Atlanta, " + "Georgia, " * 300
    mentions = [linked(text, "Atlanta", Q23556=1.0)]
    for number in range(300):
        start = len("Atlanta, ") + number * len("Georgia, ")
        mention = Mention(start=start, end=start + 7, surface="Georgia", score=1.0, finder="tagger")
        candidates = (Candidate(entity_id="Q230", prior=0.6), Candidate(entity_id="Q1428", prior=0.4))
        mentions.append(LinkedMention(mention=mention, candidates=candidates, chosen=None, probability=0.0))
    asked = []
    monkeypatch.setattr(disambiguate, "relatedness", lambda *pair: asked.append(pair) or relatedness(*pair))
    answers = answer(text, kb, *mentions)
    assert len(answers) == 301 and answers[0].chosen == "Q23556"
    # 601 candidates, 32 mentions of at most two meanings, two rounds; all against all would be 300 * 600 * 2 * 2.
    assert len(asked) <= 601 * 32 * 2 * 2


def test_further_scorers_count(kb):
    class ForTheState:
        def score(self, row, mention, candidate):
            return 5.0 if candidate.entity_id == "Q1428" else 0.0

    [one] = answer("Georgia", kb, linked("Georgia", "Georgia", Q230=0.9, Q1428=0.1), scorers=[ForTheState()])
    assert one.chosen == "Q1428"


def test_relatedness_is_one_for_links_and_half_the_common_types(kb):
    assert relatedness("Q994", "Q230", kb) == 1.0
    assert relatedness("Q994", "Q23556", kb) == 0.5
    assert relatedness("Q994", "Q7", kb) == 0.0
    assert relatedness("Q994", "unknown", kb) == 0.0
