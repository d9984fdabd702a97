"""The stage of a verifier: what it is called with, and what becomes of its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.build_i2e import main
from pipeline.config import AnnotateConfig, SelectLabelsConfig, VerifyConfig
from pipeline.explain import main as explain
from pipeline.images.decode import decode_image
from pipeline.jobs.annotate import Models, model_stages
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.schema import Candidate, ImageText, LinkedMention, Mention, Row, UserError
from pipeline.stages import verify_links as stage
from pipeline.stages.verify_links import VerifyLinks, verify_rows
from tests.fakes import pair, png, write_encoder_stub, write_tar
from tests.pipeline import verifiers
from tests.pipeline.mined_set import mine

RED, GREEN = 200, 200 << 8
HERE = "tests.pipeline.verifiers"


def write_world(folder: Path) -> None:
    """Writes a base in which E1 is red and E2 green, and one shard."""
    with KnowledgeBaseWriter(str(folder / "kb")) as writer:
        for entity_id, colour in (("E1", "red"), ("E2", "green")):
            writer.add(Entity(entity_id=entity_id, label=f"Entity {entity_id}", description=colour))
        writer.commit(source="fake", source_sha256="0")
    write_encoder_stub(folder / "encoder")
    (folder / "tagger.pt").write_bytes(b"tagger")
    write_tar(
        folder / "pairs-0.tar",
        [
            *pair("a", "E1", RED),
            *pair("b", "E1", GREEN),
            *pair("c", "E2", GREEN),
            *pair("d", "E1|E2", GREEN + 256),  # E1 is chosen, with E2 as its rival
            *pair("e", "E1 E2", RED + 1),
            *pair("f", "E2", GREEN + 512),
            *pair("g", "nothing", GREEN),
        ],
    )


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return KnowledgeBase.open(str(folder / "kb"))


def row(text: str, image: bytes, *linked: LinkedMention) -> Row:
    return Row(pair=ImageText(image_id="a", image=image, text=text, shard="s.tar", row=0), linked=linked)


def linked(chosen: str | None, *entity_ids: str, start: int = 0) -> LinkedMention:
    mention = Mention(start=start, end=start + 2, surface="E1", score=0.5, finder="tagger")
    candidates = tuple(Candidate(entity_id=one, prior=0.5, score=0.4, similarity=0.3) for one in entity_ids)
    return LinkedMention(mention=mention, candidates=candidates, chosen=chosen, probability=0.4)


def test_links_that_the_verifier_doubts_are_rejected_and_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(tmp_path)
    verifiers.sizes.clear()
    folder = mine(
        tmp_path,
        select=SelectLabelsConfig(min_similarity=-1.0, min_verifier_score=0.5),
        verify=VerifyConfig(verifier=f"{HERE}:by_colour", verifier_batch_size=4),
    )
    # Seven names have an entity chosen: those of a, b, c, d and f, and two of e.
    assert verifiers.sizes == [4, 3]
    records = {one["image_id"]: one for one in pq.read_table(folder / "annotations" / "pairs-0.parquet").to_pylist()}

    def scores(image_id: str) -> list[list[tuple[str, float]]]:
        mentions = records[image_id]["linked"]
        return [[(c["entity_id"], c["verifier_score"]) for c in mention["candidates"]] for mention in mentions]

    assert scores("a") == [[("E1", 1.0)]] and scores("b") == [[("E1", 0.0)]] and scores("c") == [[("E2", 1.0)]]
    assert scores("d") == [[("E2", 1.0), ("E1", 0.0)]] and scores("e") == [[("E1", 1.0)], [("E2", 0.0)]]
    ledger = {one["image_id"]: one for one in pq.read_table(folder / "ledger" / "pairs-0.parquet").to_pylist()}
    assert {image_id: one["entity_ids"] for image_id, one in ledger.items() if one["outcome"] == "kept"} == {
        "a": ["E1"], "c": ["E2"], "e": ["E1"], "f": ["E2"],
    }  # fmt: skip
    assert [ledger[one]["reason"] for one in "bdg"] == ["low_verifier_score", "low_verifier_score", "no_mention"]
    funnel = json.loads((folder / "funnel.json").read_text())
    assert funnel["labels"]["low_verifier_score"] == 3 and funnel["labels"]["kept"] == 4
    explain(["--data", str(folder), "--image", "d"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "verifier score 0.0000 1.0000" in lines  # E1, the likeliest, and E2
    assert "verifier score 0.0000; at least 0.5 is needed (--min-verifier-score)" in lines
    assert any(line.startswith("label rejected at select_labels: low_verifier_score (the ver") for line in lines)


def test_the_share_to_keep_is_of_the_labels_that_the_verifier_lets_pass(tmp_path: Path) -> None:
    write_world(tmp_path)
    folder = mine(
        tmp_path,
        select=SelectLabelsConfig(keep_share=1.0, min_verifier_score=0.5),
        verify=VerifyConfig(verifier=f"{HERE}:by_colour"),
    )
    # The similarities are the red in hundredths: a 2.0, e 2.01; c and f 0.0; b and d, which are rejected, 0.0.
    assert json.loads((folder / "manifest.json").read_text())["min_similarity"] == 0.0
    assert json.loads((folder / "funnel.json").read_text())["labels"]["low_similarity"] == 0


def test_without_a_least_score_the_scores_are_kept_and_nothing_is_rejected(tmp_path: Path) -> None:
    write_world(tmp_path)
    folder = mine(
        tmp_path, select=SelectLabelsConfig(min_similarity=-1.0), verify=VerifyConfig(verifier=f"{HERE}:judge.length")
    )
    records = pq.read_table(folder / "annotations" / "pairs-0.parquet").to_pylist()
    assert records[3]["linked"][0]["candidates"][0]["verifier_score"] == 5.0  # "E1|E2"
    assert json.loads((folder / "funnel.json").read_text())["rows"]["kept"] == 6


def test_a_verifier_sees_the_picture_on_white_the_text_and_all_candidates(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(images: Any, texts: Any, candidates: Any) -> Any:
        seen.append((images, texts, candidates))
        return [[0.25] * len(ones) for ones in candidates]

    monkeypatch.setattr(verifiers, "look", look, raising=False)
    rows = [
        row("E1 and E1", png(RED), linked("E1", "E1", "E2"), linked(None, "E1", start=7)),
        row("E1", png(GREEN), linked("E2", "E2")),
    ]
    first, second = verify_rows(rows, kb, f"{HERE}:look", batch_size=64)
    ((images, texts, candidates),) = seen
    assert [image.mode for image in images] == ["RGB", "RGB"] and images[0].getpixel((0, 0)) == (RED, 0, 0)
    assert texts == ["E1 and E1", "E1"]
    one = candidates[0][1]
    assert (one.entity_id, one.name, one.description, one.start, one.end) == ("E2", "Entity E2", "green", 0, 2)
    assert (one.probability, one.similarity) == (0.4, 0.3)
    assert [c.verifier_score for c in first.linked[0].candidates] == [0.25, 0.25]
    assert first.linked[1].candidates[0].verifier_score is None  # NIL is not verified
    assert second.linked[0].candidates[0].verifier_score == 0.25


def test_names_are_verified_in_batches_and_each_gets_its_own_score(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(stage, "decode_image", lambda image: decoded.append(image) or decode_image(image))
    verifiers.sizes.clear()
    rows = [
        row("red", png(RED), linked("E1", "E1", "E2"), linked("E1", "E1")),
        row("green", png(GREEN), linked(None, "E1"), linked("E2", "E2"), linked("E1", "E1")),
    ]
    verify = VerifyLinks(kb.path, f"{HERE}:by_colour", batch_size=3)
    verify.setup()
    found = verify.run(rows)
    assert isinstance(found[0], Row) and isinstance(found[1], Row)
    assert [[one.verifier_score for one in name.candidates] for name in found[0].linked] == [[1.0, 0.0], [1.0]]
    assert [[one.verifier_score for one in name.candidates] for name in found[1].linked] == [[None], [1.0], [0.0]]
    assert verifiers.sizes == [3, 1]
    assert decoded == [png(RED), png(GREEN), png(GREEN)]  # once a batch, however many names it has
    assert (verify.name, verify_rows([], kb, f"{HERE}:fails", batch_size=1)) == ("verify_links", [])


def test_the_stage_refuses_a_verifier_before_it_reads_rows(kb: KnowledgeBase) -> None:
    with pytest.raises(UserError, match="has no absent"):
        VerifyLinks(kb.path, f"{HERE}:absent", batch_size=3).setup()


def test_rows_without_a_chosen_entity_call_no_verifier(kb: KnowledgeBase) -> None:
    rows = [row("E1", png(RED), linked(None, "E1"))]
    assert verify_rows(rows, kb, f"{HERE}:fails", batch_size=2) == rows


def test_a_run_with_a_faulty_verifier_ends_with_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(tmp_path)
    with pytest.raises(UserError, match=f"^--verifier {HERE}:fails raised RuntimeError: the model is not there"):
        mine(tmp_path, verify=VerifyConfig(verifier=f"{HERE}:fails"))
    arguments = ["--input", f"{tmp_path}/pairs-0.tar", "--kb", f"{tmp_path}/kb", "--ner-model", f"{tmp_path}/tagger.pt"]
    arguments += ["--encoder", f"{tmp_path}/encoder", "--output", f"{tmp_path}/out"]
    for flags, message in (
        (["--verifier", "nothing"], "error: --verifier nothing is not of the form module:function"),
        (
            ["--min-verifier-score", "0.5"],
            "error: --min-verifier-score is 0.5, and there is no verifier; give --verifier",
        ),
        (["--verifier-batch-size", "0"], "error: --verifier-batch-size is 0; the least allowed is 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *flags])
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and printed.startswith(message) and printed.count("\n") == 1


def test_the_stage_is_there_if_and_only_if_a_verifier_is_named() -> None:
    models = Models(kb="kb", ner_model="tagger.pt", encoder="encoder")
    assert "verify_links" not in [stage.name for stage in model_stages(models, AnnotateConfig())]
    config = AnnotateConfig(verify=VerifyConfig(verifier=f"{HERE}:by_colour", verifier_batch_size=3))
    stage = model_stages(models, config)[-1]
    assert stage.name == "verify_links" and (stage.verifier, stage.batch_size) == (f"{HERE}:by_colour", 3)  # type: ignore[attr-defined]
