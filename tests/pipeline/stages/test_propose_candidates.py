"""Candidates of a mention and their priors."""

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import Batch, ImageText, Mention, Row
from pipeline.stages.propose_candidates import ProposeCandidates, propose_candidates


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


def test_priors_come_from_the_base(kb_path):
    # brand: alias, (1 + 4) * 0.4 = 2. board: label, (1 + 1) * 1 = 2.
    found = propose_candidates(mention("Target"), "Target", KnowledgeBase.open(kb_path))
    assert [(one.entity_id, one.prior) for one in found] == [("board", 0.5), ("brand", 0.5)]


def test_a_proper_name_in_lower_case_amid_capitals_is_less_likely(kb_path):
    found = propose_candidates(mention("target"), "Arrow in a target", KnowledgeBase.open(kb_path))
    # 0.5 against 0.5 * 0.25
    assert [(one.entity_id, pytest.approx(one.prior)) for one in found] == [("board", 0.8), ("brand", 0.2)]


def test_possessive_and_plural_lead_to_the_name(kb_path):
    kb = KnowledgeBase.open(kb_path)
    assert {one.entity_id for one in propose_candidates(mention("Target's"), "", kb)} == {"board", "brand"}
    assert {one.entity_id for one in propose_candidates(mention("targets"), "", kb)} == {"board", "brand"}


def test_an_entity_found_under_two_spellings_has_the_larger_of_their_shares(tmp_path):
    # "arrows" itself: band (1 + 1) * 1 = 2, sign (1 + 8) * 0.4 = 3.6. Its singular, at half: band 0.4 * 2, sign 9.
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="band", label="arrows", aliases=("arrow",), popularity=1.0))
        writer.add(Entity(entity_id="sign", label="arrow", aliases=("arrows",), popularity=8.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("arrows"), "arrows", KnowledgeBase.open(str(tmp_path)))
    band = max(2 / 5.6, 0.5 * 0.8 / 9.8)  # 0.357, by its label
    sign = max(3.6 / 5.6, 0.5 * 9 / 9.8)  # 0.643, by its alias
    assert [(one.entity_id, one.prior) for one in found] == [
        ("sign", pytest.approx(sign / (band + sign))),
        ("band", pytest.approx(band / (band + sign))),
    ]
    # Here the singular has the larger share.
    with KnowledgeBaseWriter(str(tmp_path / "other")) as writer:
        writer.add(Entity(entity_id="screw", label="bolt", aliases=("bolts",), popularity=1.5))
        writer.add(Entity(entity_id="team", label="bolts", popularity=98.0))
        writer.commit(source="x", source_sha256="")
    found = propose_candidates(mention("bolts"), "bolts", KnowledgeBase.open(str(tmp_path / "other")))
    # "bolts": screw (1 + 1.5) * 0.4 = 1, team 99, of 100. "bolt": screw alone, at half: 0.5.
    assert [(one.entity_id, one.prior) for one in found] == [
        ("team", pytest.approx(0.99 / 1.49)),
        ("screw", pytest.approx(0.5 / 1.49)),
    ]


def test_the_number_of_candidates_is_limited(kb_path):
    assert len(propose_candidates(mention("Target"), "", KnowledgeBase.open(kb_path), num_candidates=1)) == 1


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
