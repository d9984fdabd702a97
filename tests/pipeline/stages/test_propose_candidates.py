"""Candidates of a mention and their priors."""

import time

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.function_words import of_languages
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import Batch, ImageText, Mention, Row
from pipeline.stages.find_mentions import find_mentions
from pipeline.stages.propose_candidates import ProposeCandidates, propose_candidates, propose_row

of_languages(("en",))  # once, before the tests: reading it takes longer than any of them


@pytest.fixture(scope="module")
def kb_path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        writer.add(Entity(entity_id="brand", label="Target Corporation", aliases=("Target",), popularity=4.0))
        writer.add(Entity(entity_id="board", label="target", popularity=1.0))
        writer.commit(source="x", source_sha256="")
    return path


def mention(surface):
    return Mention(start=0, end=len(surface), surface=surface, score=1.0, finder="tagger")


def test_priors_and_cases_come_from_the_base(kb_path):
    # brand: alias, (1 + 4) * 0.4 = 2. board: label, (1 + 1) * 1 = 2.
    found = propose_candidates(mention("Target"), KnowledgeBase.open(kb_path))
    assert [(one.entity_id, one.prior, one.match, one.case) for one in found] == [
        ("board", 0.5, 1.0, "common"),
        ("brand", 0.5, 1.0, "proper"),
    ]
    # How often "target" is a name at all, not "target corporation".
    assert {one.link_probability for one in found} == {KnowledgeBase.open(kb_path).alias("target").link_probability}


def test_of_a_name_of_the_base_the_spelling_without_accents_is_no_common_noun(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        for entity_id, label in (
            ("island", "R\u00e9union"), ("party", "reunion"), ("brand", "Reunion"), ("film", "r\u00e9union"),
            ("CV", "r\u00e9sum\u00e9"), ("go on", "resume"),
        ):  # fmt: skip
            writer.add(Entity(entity_id=entity_id, label=label))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))

    def candidates(surface):
        return {one.entity_id for one in propose_candidates(mention(surface), kb)}

    assert candidates("R\u00e9union") == {"island", "film", "brand"}
    assert candidates("reunion") == {"island", "film", "brand", "party"}
    assert candidates("r\u00e9sum\u00e9") == {"CV", "go on"}  # no proper name
    assert candidates("R\u00e9uni\u00f3n") == {"island", "film", "brand", "party"}  # the base has no such name


@pytest.mark.parametrize(
    ("surface", "match", "expected"),
    [
        ("Target's", 0.9, ["board", "brand"]),
        ("the target", 0.9, ["board", "brand"]),
        ("Target Inc.", 0.7, ["board", "brand"]),
        ("Tar'get", 0.8, ["board", "brand"]),
        ("targets", 0.6, ["board"]),  # the plural of a noun, not of a brand
    ],
)
def test_other_spellings_lead_to_the_name_and_match_less(kb_path, surface, match, expected):
    found = propose_candidates(mention(surface), KnowledgeBase.open(kb_path))
    # The prior stays the share of the alias's uses, though all candidates match less.
    assert [(one.entity_id, one.prior, one.match) for one in found] == [(one, 0.5, match) for one in expected]


def test_of_two_spellings_the_one_with_the_larger_product_of_prior_and_match_counts(tmp_path):
    # "arrows" itself: band (1 + 1) * 1 = 2, sign (1 + 8) * 0.4 = 3.6. Its singular: band 0.4 * 2 = 0.8, sign 9.
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="band", label="arrows", aliases=("arrow",), popularity=1.0))
        writer.add(Entity(entity_id="sign", label="arrow", aliases=("arrows",), popularity=8.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("arrows"), KnowledgeBase.open(str(tmp_path)))
    assert [(one.entity_id, one.prior, one.match) for one in found] == [
        ("sign", pytest.approx(3.6 / 5.6), 1.0),  # 0.643, more than 9 / 9.8 * 0.6 = 0.551
        ("band", pytest.approx(2 / 5.6), 1.0),  # 0.357, more than 0.8 / 9.8 * 0.6 = 0.049
    ]
    # Here the singular has the larger product.
    with KnowledgeBaseWriter(str(tmp_path / "other")) as writer:
        writer.add(Entity(entity_id="screw", label="bolt", aliases=("bolts",), popularity=1.5))
        writer.add(Entity(entity_id="team", label="bolts", popularity=98.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("bolts"), KnowledgeBase.open(str(tmp_path / "other")))
    # "bolts": screw (1 + 1.5) * 0.4 = 1, team 99, of 100. "bolt": screw alone.
    assert [(one.entity_id, one.prior, one.match) for one in found] == [
        ("team", pytest.approx(0.99), 1.0),
        ("screw", 1.0, 0.6),
    ]


def test_a_later_spelling_that_matches_more_replaces_an_earlier_one(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="maker", label="Bolt", aliases=("B\u00f6lt Inc",), popularity=3.0))
        writer.add(Entity(entity_id="runner", label="Bolt", popularity=0.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("Bolt Inc"), KnowledgeBase.open(str(tmp_path)))
    # First without its legal form, prior 4 / 5, match 0.7; then without accents, where it is alone, match 0.8.
    assert [(one.entity_id, one.prior, one.match) for one in found] == [
        ("maker", 1.0, 0.8),
        ("runner", pytest.approx(1 / 5), 0.7),
    ]


def test_of_two_spellings_with_equal_products_the_first_counts(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="city", label="hague", aliases=("The Hague",)))
        writer.commit(source="x", source_sha256="")
    [found] = propose_candidates(mention("The Hague's"), KnowledgeBase.open(str(tmp_path)))
    # "the hague" and "hague" both match by 0.9 and mean the city alone.
    assert (found.prior, found.match, found.case) == (1.0, 0.9, "proper")


def test_the_plural_of_a_name_leads_past_brands_to_the_noun(tmp_path):
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="brand", label="Bolt", popularity=8.0))
        writer.add(Entity(entity_id="screw", label="bolt", popularity=0.0))
        writer.commit(source="x", source_sha256="")
    kb = KnowledgeBase.open(str(tmp_path))
    assert [one.entity_id for one in kb.entries("bolt")] == ["brand", "screw"]
    assert [one.entity_id for one in propose_candidates(mention("bolts"), kb)] == ["screw"]


def test_the_number_of_candidates_is_limited(kb_path):
    [found] = propose_candidates(mention("Target"), KnowledgeBase.open(kb_path), num_candidates=1)
    assert found.entity_id == "board"  # of equal ones the first id


def test_candidates_are_in_the_order_of_prior_times_match(tmp_path):
    # "bolt inc" itself: a club, prior 1. By its legal form at 0.7: runner 0.9, screw 0.1.
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="club", label="Bolt-Inc", aliases=("bolt",), popularity=0.25))
        writer.add(Entity(entity_id="runner", label="Bolt", popularity=8.0))
        writer.add(Entity(entity_id="screw", label="bolt", popularity=0.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("Bolt Inc"), KnowledgeBase.open(str(tmp_path)))
    # The club has the alias "bolt" too, (1 + 0.25) * 0.4 = 0.5 of 9 + 1 + 0.5 there, but its own name counts more.
    assert [(one.entity_id, pytest.approx(one.prior), one.match, one.case) for one in found] == [
        ("club", 1.0, 1.0, "proper"),
        ("runner", 9 / 10.5, 0.7, "proper"),
        ("screw", 1 / 10.5, 0.7, "common"),
    ]


def test_the_stage_opens_its_base_and_keeps_its_limit(kb_path):
    propose = ProposeCandidates(kb_path, num_candidates=1)
    propose.setup()
    pair = ImageText(image_id="p", image=b"", text="Target", shard="s", row=0)
    known, unknown = Row(pair=pair, mentions=(mention("Target"),)), Row(pair=pair, mentions=(mention("Zorblax"),))
    kept, rejected = propose.run([known, unknown])
    [linked] = kept.linked
    assert [one.entity_id for one in linked.candidates] == ["board"]
    assert (linked.mention, linked.chosen, linked.probability) == (mention("Target"), None, 0.0)
    assert (rejected.stage, rejected.reason) == ("propose_candidates", "no_candidate")


def test_a_limit_below_one_is_refused(kb_path):
    with pytest.raises(ValueError, match="num_candidates 0: must be at least 1"):
        ProposeCandidates(kb_path, num_candidates=0)


def test_rows_without_a_candidate_leave_through_rejected(kb_path):
    def row(image_id, surface):
        pair = ImageText(image_id=image_id, image=b"", text=surface, shard="s", row=0)
        return Row(pair=pair, mentions=(mention(surface),))

    batches = [
        Batch(shard="s", rows=(row("a", "Target"), row("b", "Zorblax"))),
        Batch(shard="s", rows=(row("c", "Zorblax"),)),
    ]
    with TestPipeline() as pipeline:
        outputs = pipeline | beam.Create(batches) | ProposeCandidates(kb_path)
        kept = outputs.kept | beam.Map(lambda batch: [row.pair.image_id for row in batch.rows])
        rejected = outputs.rejected | beam.Map(lambda one: (one.image_id, one.reason, one.linked[0].mention.surface))
        assert_that(kept, equal_to([["a"]]), label="kept")
        expected = [("b", "no_candidate", "Zorblax"), ("c", "no_candidate", "Zorblax")]
        assert_that(rejected, equal_to(expected), label="rejected")


@pytest.mark.parametrize(
    "text", ["a target and " * 80_000, "\u6771\u4eac\u30bf\u30ef\u30fc" * 200_000, "Target Inc " * 90_000]
)
def test_a_megabyte_of_text_takes_less_than_a_second(text, kb_path):
    kb = KnowledgeBase.open(kb_path)
    start = time.process_time()
    pair = ImageText(image_id="p", image=b"", text=text, shard="s", row=0)
    row = propose_row(Row(pair=pair, mentions=find_mentions(text, [], kb)), kb)
    assert time.process_time() - start < 1.0
    assert len(row.linked) == (
        0 if "\u6771" in text else 154 if "and" in text else 182
    )  # of what is read: 2000 / 13, 2000 / 11
