"""The right one of several meanings, or none of them."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import DisambiguateConfig
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.weights import Weights, read_weights
from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row
from pipeline.stages import disambiguate
from pipeline.stages.disambiguate import add_ties, answer_row, disambiguate_row, relatedness

CONFIG = DisambiguateConfig()


def weights(bias=0.0, **of_evidence):
    return Weights(of_evidence=tuple(of_evidence.get(name, 0.0) for name in EVIDENCE), bias=bias)


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


def answer(text, kb, *mentions, by, config=CONFIG):
    pair = ImageText(image_id="p", image=b"", text=text, shard="s", row=0)
    return disambiguate_row(Row(pair=pair, linked=mentions), kb, config, by).linked


def evidence(candidate, name):
    return candidate.evidence[EVIDENCE.index(name)]


def test_the_score_is_the_softmax_over_the_candidates_and_nil(kb):
    both = linked("Georgia", "Georgia", Q230=0.7, Q1428=0.3)
    [one] = answer("Georgia", kb, both, by=weights(bias=-1.0, prior=2.0))
    # exp(2 ln 0.7 - 1) = 0.49 / e, exp(2 ln 0.3 - 1) = 0.09 / e, and NIL exp(0) = 1.
    total = 0.49 / math.e + 0.09 / math.e + 1
    assert [candidate.score for candidate in one.candidates] == pytest.approx(
        [0.49 / math.e / total, 0.09 / math.e / total]
    )
    assert (one.chosen, one.probability) == (None, pytest.approx(1 / total))


def test_the_likeliest_candidate_is_chosen_unless_nil_is_too_likely(kb):
    both = linked("Georgia", "Georgia", Q230=0.7, Q1428=0.3)
    by = weights(bias=1.0, prior=1.0)
    # Both scores are ln(prior) + 1, so their exponentials sum to e, and NIL has 1.
    of_candidates = math.e / (math.e + 1)
    for limit, chosen in ((of_candidates - 1e-9, "Q230"), (of_candidates + 1e-9, None)):
        [one] = answer("Georgia", kb, both, by=dataclasses.replace(by, probability_min=limit))
        assert one.chosen == chosen
        assert one.probability == pytest.approx(0.7 * of_candidates if chosen else 1 - of_candidates)


def test_of_equal_scores_the_first_candidate_wins(kb):
    [one] = answer("Georgia", kb, linked("Georgia", "Georgia", Q1428=0.5, Q230=0.5), by=weights(bias=9.0, prior=1.0))
    assert one.chosen == "Q1428"
    assert one.probability == pytest.approx(0.5, abs=1e-3)


def test_the_text_outweighs_the_prior(kb):
    text = "Georgia, federal state in the United States"
    [one] = answer(text, kb, linked(text, "Georgia", Q230=0.8, Q1428=0.2), by=weights(prior=1.0, text=6.0))
    assert one.chosen == "Q1428"
    assert {candidate.entity_id: evidence(candidate, "text") for candidate in one.candidates} == {
        "Q1428": 1.0,
        "Q230": 0.0,
    }


def test_a_linked_entity_in_the_text_decides(kb):
    text = "Georgia and Atlanta"
    mentions = linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=1.0)
    georgia, atlanta = answer(text, kb, *mentions, by=weights(bias=1.0, prior=1.0, coherence=3.0))
    assert (georgia.chosen, atlanta.chosen) == ("Q1428", "Q23556")
    # Q1428 links to Atlanta, Q230 does not.
    assert evidence(georgia.candidates[1], "coherence") > 0.7
    assert evidence(georgia.candidates[0], "coherence") == 0.0
    georgia, _ = answer(
        text,
        kb,
        *mentions,
        by=weights(bias=1.0, prior=1.0, coherence=3.0),
        config=dataclasses.replace(CONFIG, num_iterations=0),
    )
    assert evidence(georgia.candidates[1], "coherence") == 0.0


def test_coherence_is_expected_over_what_the_others_may_mean(kb):
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=0.5, Q7=0.5)]
    tables = [np.zeros((2, len(EVIDENCE))), np.zeros((2, len(EVIDENCE)))]
    add_ties(mentions, tables, [np.array([0.6, 0.3]), np.array([0.25, 0.5])], kb)
    place = EVIDENCE.index("coherence")
    # Q1428 is tied to Q23556 alone: 0.25 x 1. Atlanta (Q23556) in turn to Q1428: 0.3 x 1. The hotel to nothing.
    assert tables[0][:, place].tolist() == [0.0, 0.25]
    assert tables[1][:, place].tolist() == [0.3, 0.0]
    assert np.delete(tables[0], place, axis=1).sum() == 0


def test_ties_of_an_earlier_round_are_forgotten(kb):
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q1428=1.0), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.zeros((1, len(EVIDENCE))), np.zeros((1, len(EVIDENCE)))]
    add_ties(mentions, tables, [np.array([0.5]), np.array([0.9])], kb)
    assert tables[0].sum() == 0.9
    add_ties(mentions, tables, [np.array([0.001]), np.array([0.005])], kb)
    assert [table.sum() for table in tables] == [0.0, 0.0]


def test_a_hardly_possible_meaning_neither_informs_nor_is_informed(kb):
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q1428=1.0), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.zeros((1, len(EVIDENCE))), np.zeros((1, len(EVIDENCE)))]
    add_ties(mentions, tables, [np.array([0.005]), np.array([0.9])], kb)
    assert [table.sum() for table in tables] == [0.0, 0.0]


def test_a_meaning_must_be_more_likely_than_one_in_a_hundred_to_inform(kb):
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q1428=1.0), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.zeros((1, len(EVIDENCE))), np.zeros((1, len(EVIDENCE)))]
    add_ties(mentions, tables, [np.array([0.01]), np.array([0.9])], kb)
    assert [table.sum() for table in tables] == [0.0, 0.0]
    add_ties(mentions, tables, [np.array([0.0101]), np.array([0.9])], kb)
    assert [table.sum() for table in tables] == [0.9, 0.0101]


def test_the_surest_mentions_inform_the_others_of_equal_ones_the_first(kb, monkeypatch):
    monkeypatch.setattr(disambiguate, "_NUM_INFORMING", 1)
    text = "Georgia, Atlanta, Tbilisi and hotel"
    mentions = [
        linked(text, "hotel", Q7=1.0),
        linked(text, "Georgia", Q230=1.0),
        linked(text, "Tbilisi", Q994=1.0),
        linked(text, "Atlanta", Q23556=1.0),
    ]
    tables = [np.zeros((1, len(EVIDENCE))) for _ in mentions]
    add_ties(mentions, tables, [np.array([0.4]), np.array([0.8]), np.array([0.8]), np.array([0.2])], kb)
    # Georgia alone informs, and no other informs it. Tbilisi is tied to it by a link; the hotel and Atlanta are not.
    assert [table[0, EVIDENCE.index("coherence")] for table in tables] == [0.0, 0.0, 0.8, 0.0]
    add_ties(mentions, tables, [np.array([0.4]), np.array([0.8]), np.array([0.3]), np.array([0.9])], kb)
    # Now Atlanta does: Tbilisi is a city too, which counts half. 0.5 x 0.9.
    assert [table[0, EVIDENCE.index("coherence")] for table in tables] == [0.0, 0.0, 0.45, 0.0]


def test_a_mention_without_candidates_counts_as_one_that_ties_nothing(kb):
    text = "Georgia, Atlanta and Zorblax"
    mentions = [linked(text, "Georgia", Q1428=1.0), linked(text, "Zorblax"), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.zeros((len(one.candidates), len(EVIDENCE))) for one in mentions]
    add_ties(mentions, tables, [np.array([0.5]), np.zeros(0), np.array([0.9])], kb)
    assert [table.sum() for table in tables] == [0.45, 0.0, 0.25]  # 0.9 / 2, and 0.5 / 2


def test_graph_vectors_are_compared_with_what_the_others_mean(kb, monkeypatch):
    seen = []

    def text_vector(base, rivals):
        seen.append((base, list(rivals)))
        return np.array([0.6, 0.8]) if rivals else None

    vectors = {"Q1428": np.array([1.0, 0.0]), "Q23556": np.array([0.0, 1.0])}
    monkeypatch.setattr(disambiguate, "text_vector", text_vector)
    monkeypatch.setattr(kb, "vector", vectors.get)
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.zeros((2, len(EVIDENCE))), np.zeros((1, len(EVIDENCE)))]
    add_ties(mentions, tables, [np.array([0.5, 0.3]), np.array([0.7])], kb, frozenset(("graph",)))
    assert seen == [(kb, [("Q23556", 0.7)]), (kb, [("Q230", 0.5), ("Q1428", 0.3)])]
    graph = EVIDENCE.index("graph")
    # Georgia as a country has no vector; as a state 1 x 0.6; Atlanta 1 x 0.8. Coherence is not asked for.
    assert tables[0][:, graph].tolist() == [0.0, 0.6] and tables[1][:, graph].tolist() == [0.8]
    assert sum(np.delete(table, graph, axis=1).sum() for table in tables) == 0.0
    # Without graph vectors in use none is asked for, and what stands there stays.
    add_ties(mentions, tables, [np.array([0.5, 0.3]), np.array([0.7])], kb, frozenset(("coherence",)))
    assert len(seen) == 2 and tables[1][0, graph] == 0.8


def test_a_text_whose_vector_is_unknown_leaves_the_graph_at_zero(kb):
    text = "Georgia and Atlanta"
    mentions = [linked(text, "Georgia", Q1428=1.0), linked(text, "Atlanta", Q23556=1.0)]
    tables = [np.ones((1, len(EVIDENCE))) for _ in mentions]
    add_ties(mentions, tables, [np.array([0.5]), np.array([0.7])], kb, frozenset(("graph",)))
    assert [table[0, EVIDENCE.index("graph")] for table in tables] == [0.0, 0.0]


def test_evidence_of_another_number_than_the_mentions_is_an_error(kb):
    pair = ImageText(image_id="p", image=b"", text="Georgia", shard="s", row=0)
    row = Row(pair=pair, linked=(linked("Georgia", "Georgia", Q230=1.0),))
    with pytest.raises(ValueError, match="shorter"):
        answer_row(row, [], kb, CONFIG, weights(prior=1.0))


def test_mentions_inform_each_other_as_often_as_is_configured(kb):
    text = "Georgia and Atlanta"
    mentions = linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=1.0)
    by, found = weights(bias=1.0, prior=1.0, coherence=3.0), []
    for number in (1, 2):
        config = dataclasses.replace(CONFIG, num_iterations=number)
        georgia, _ = answer(text, kb, *mentions, by=by, config=config)
        found.append(evidence(georgia.candidates[1], "coherence"))
        assert evidence(georgia.candidates[1], "prior") == math.log(0.4)
    # First Atlanta has e / (e + 1) = 0.731. Georgia then lends it 0.4 e / (e + 1) = 0.292: e ^ (1 + 3 x 0.292).
    first = math.e / (math.e + 1)
    lent = 3 * 0.4 * first
    assert found == pytest.approx([first, math.exp(1 + lent) / (math.exp(1 + lent) + 1)])


def test_only_ties_with_a_weight_are_gathered(kb, monkeypatch):
    asked = []
    monkeypatch.setattr(disambiguate, "add_ties", lambda linked, tables, shares, base, used: asked.append(used))
    text = "Georgia and Atlanta"
    mentions = linked(text, "Georgia", Q1428=1.0), linked(text, "Atlanta", Q23556=1.0)
    config = dataclasses.replace(CONFIG, num_iterations=1)
    for by in (weights(prior=1.0), weights(prior=1.0, graph=2.0), weights(coherence=1.0, graph=2.0)):
        answer(text, kb, *mentions, by=by, config=config)
    assert asked == [{"graph"}, {"coherence", "graph"}]


def test_types_in_common_count_half_of_their_share(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for entity_id, types in (("A", ("x", "y")), ("B", ("y", "z")), ("C", ("x", "y", "w"))):
            writer.add(Entity(entity_id=entity_id, label=entity_id, types=types))
        writer.commit(source="x", source_sha256="")
    base = KnowledgeBase.open(str(tmp_path))
    # One type of three, two of three, and one of four.
    assert [relatedness(*pair, base) for pair in ("AB", "AC", "BC")] == [0.5 / 3, 0.5 * 2 / 3, 0.5 / 4]


def test_the_stage_has_default_settings_and_the_shipped_weights(kb):
    stage = disambiguate.Disambiguate(kb.path)
    assert (stage.kb_path, stage.config, stage.weights) == (kb.path, CONFIG, read_weights())
    assert stage.name == "disambiguate"


def test_evidence_without_a_weight_is_not_gathered(kb):
    text = "Georgia, federal state in the United States"
    [one] = answer(text, kb, linked(text, "Georgia", Q230=0.8, Q1428=0.2), by=weights(prior=1.0))
    assert [evidence(candidate, "text") for candidate in one.candidates] == [0.0, 0.0]


def test_a_mention_without_candidates_is_nil_for_sure(kb):
    [one] = answer("Zorblax", kb, linked("Zorblax", "Zorblax"), by=weights(prior=1.0))
    assert (one.chosen, one.probability, one.candidates) == (None, 1.0, ())


def test_two_entities_are_related_by_links_and_types(kb):
    assert relatedness("Q230", "Q230", kb) == 1.0
    assert relatedness("Q230", "Q994", kb) == relatedness("Q994", "Q230", kb) == 1.0
    assert relatedness("Q994", "Q23556", kb) == 0.5  # both are cities, and nothing else
    assert relatedness("Q230", "Q23556", kb) == 0.0
    assert relatedness("Q230", "Q0", kb) == 0.0
    assert relatedness("Q7", "F1", kb) == 0.0  # neither has types


def test_the_stage_rejects_rows_without_an_entity(kb, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"format_version": 1, "bias": 1.0, "weights": {"prior": 1.0}}')
    stage = disambiguate.Disambiguate(kb.path, DisambiguateConfig(weights=str(path)))
    stage.setup()
    pair = ImageText(image_id="p", image=b"", text="Georgia", shard="s", row=3)
    # e times a prior of 0.9 is more than NIL's 1, and e times 0.3 is less.
    sure, rare = (Row(pair=pair, linked=(linked("Georgia", "Georgia", Q230=prior),)) for prior in (0.9, 0.3))
    kept, rejected = stage.run([sure, rare])
    assert isinstance(kept, Row) and kept.linked[0].chosen == "Q230"
    assert (rejected.stage, rejected.reason, rejected.row) == ("disambiguate", "all_nil", 3)
    assert rejected.linked[0].chosen is None
    assert stage.further_counts([kept, rejected]) == {
        "mentions_linked": 1,
        "mentions_nil": 1,
        "mentions_in_doubt": 0,
    }


def test_the_stage_lets_the_mentions_of_a_row_inform_each_other_as_it_is_configured(kb, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"format_version": 1, "bias": 1.0, "weights": {"prior": 1.0, "coherence": 3.0}}')
    stage = disambiguate.Disambiguate(kb.path, DisambiguateConfig(weights=str(path), num_iterations=1))
    stage.setup()
    text = "Georgia and Atlanta"
    pair = ImageText(image_id="p", image=b"", text=text, shard="s", row=0)
    mentions = linked(text, "Georgia", Q230=0.6, Q1428=0.4), linked(text, "Atlanta", Q23556=1.0)
    [found] = stage.run([Row(pair=pair, linked=mentions)])
    # Q1428 links to Atlanta, which has e / (e + 1) in the only round.
    coherence = [evidence(candidate, "coherence") for candidate in found.linked[0].candidates]
    assert coherence == pytest.approx([0.0, math.e / (math.e + 1)])
    assert found.linked[0].chosen == "Q1428"


def test_the_stage_compares_meanings_by_the_encoder_that_is_configured(kb, monkeypatch):
    class Comparer:
        def __init__(self, encoder, base):
            assert (encoder.name, base) == ("some-model", kb)

        def add_meaning(self, rows, gathered):
            for row, [table] in zip(rows, gathered, strict=True):
                table[:, EVIDENCE.index("meaning")] = row.pair.row

    def load(name):
        return SimpleNamespace(name=name, device="cuda:1")

    monkeypatch.setattr(disambiguate, "load_sentence_encoder", load)
    monkeypatch.setattr(disambiguate, "TextComparer", Comparer)
    georgia = linked("Georgia", "Georgia", Q230=0.9)
    rows = [
        Row(pair=ImageText(image_id="p", image=b"", text="Georgia", shard="s", row=place), linked=(georgia,))
        for place in (3, 5)
    ]
    for config, meanings, model in (
        (DisambiguateConfig(sentence_encoder="some-model"), [3.0, 5.0], "sentence encoder on cuda:1"),
        (CONFIG, [0.0, 0.0], ""),
    ):
        stage = disambiguate.Disambiguate(kb.path, config)
        stage.setup()
        assert [evidence(one.linked[0].candidates[0], "meaning") for one in stage.run(rows)] == meanings
        assert stage.model() == model


def test_evidence_of_another_number_than_the_rows_is_an_error(kb, monkeypatch):
    monkeypatch.setattr(disambiguate, "gather_rows", lambda *_: [])
    stage = disambiguate.Disambiguate(kb.path)
    stage.setup()
    with pytest.raises(ValueError, match="shorter"):
        stage.run([Row(pair=ImageText(image_id="p", image=b"", text="Georgia", shard="s", row=0))])


def test_the_stage_keeps_rows_in_doubt_for_the_picture(kb, tmp_path):
    path = tmp_path / "weights.json"
    path.write_text('{"format_version": 1, "bias": 1.0, "weights": {"prior": 1.0, "picture": 1.0}}')
    stage = disambiguate.Disambiguate(kb.path, DisambiguateConfig(weights=str(path), doubt_min=0.4, doubt_max=0.9))
    stage.setup()
    pair = ImageText(image_id="p", image=b"", text="Georgia", shard="s", row=3)
    # The candidate has e p / (e p + 1): 0.449 with a prior of 0.3, and 0.352 with 0.2.
    open_one, nil = (Row(pair=pair, linked=(linked("Georgia", "Georgia", Q230=prior),)) for prior in (0.3, 0.2))
    kept, rejected = stage.run([open_one, nil])
    assert isinstance(kept, Row) and (kept.linked[0].chosen, kept.linked[0].by_text) == (None, None)
    assert rejected.reason == "all_nil"
    assert stage.further_counts([kept, rejected]) == {"mentions_linked": 0, "mentions_nil": 2, "mentions_in_doubt": 1}
