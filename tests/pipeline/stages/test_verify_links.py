"""A verifier of the user's: what it is called with, what becomes of its scores, and of its faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.build_i2e import main
from pipeline.config import AnnotateConfig, SelectLabelsConfig, VerifyConfig
from pipeline.explain import main as explain
from pipeline.jobs.annotate import Models, model_stages
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.verifier import load_verifier, scores_of, verifier_fingerprint
from pipeline.schema import Candidate, ImageText, LinkedMention, Mention, Row, UserError
from pipeline.stages.verify_links import verify_rows
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


def test_rows_without_a_chosen_entity_call_no_verifier(kb: KnowledgeBase) -> None:
    rows = [row("E1", png(RED), linked(None, "E1"))]
    assert verify_rows(rows, kb, f"{HERE}:fails", batch_size=2) == rows


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "fails",
            r"fails raised RuntimeError: the model is not there \(.*verifiers.py, line \d+\) for a batch of 2 names",
        ),
        ("fails_later", r"fails_later raised RuntimeError: the second picture is odd \(.*verifiers.py"),
        ("too_few", "too_few returned scores for 1 names, and 2 were given; repair it"),
        ("too_many", "too_many returned 3 scores for the 2 candidates of 'E1' in the text 'E1 and more'; repair it"),
        ("one_number", "one_number returned float where a list of 2 lists of scores, one per name is needed"),
        ("flat", "flat returned float where a list of scores, one per candidate, is needed"),
        ("not_finite", "not_finite returned nan for E1 in the text 'E1 and more'; a finite number is needed"),
        ("words", "words returned 'good' for E1 in the text 'E1 and more'; a finite number is needed"),
    ],
)
def test_a_faulty_verifier_stops_the_run_with_a_line_that_names_it(
    kb: KnowledgeBase, function: str, message: str
) -> None:
    rows = [row("E1 and more", png(RED), linked("E1", "E1", "E2")), row("E1", png(GREEN), linked("E2", "E2"))]
    with pytest.raises(UserError, match=f"^--verifier {HERE}:{message}") as stop:
        verify_rows(rows, kb, f"{HERE}:{function}", batch_size=64)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("by_colour", "--verifier by_colour is not of the form module:function"),
        (":by_colour", "is not of the form"),
        (f"{HERE}:", "is not of the form"),
        ("no.such.module:f", r"the module no.such.module cannot be imported \(No module named 'no'\)"),
        (f"{HERE}:absent", "tests.pipeline.verifiers has no absent; name one"),
        (f"{HERE}:judge.absent", "has no judge.absent"),
        (f"{HERE}:not_callable", "is of type int, which cannot be called"),
    ],
)
def test_a_name_that_names_no_callable_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_verifier(name)


def test_an_array_of_scores_will_do() -> None:
    images, texts = [None, None], ["E1", "longer"]
    assert scores_of(f"{HERE}:judge.length", images, texts, [["one"], ["one"]]) == [[2.0], [6.0]]  # type: ignore[list-item]


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


def test_annotations_depend_on_the_file_of_the_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_judge.py").write_text("def judge(images, texts, candidates): return []\n")
    before = verifier_fingerprint("mine_judge:judge")
    assert verifier_fingerprint("mine_judge:judge") == before
    (tmp_path / "mine_judge.py").write_text("def judge(images, texts, candidates): return [[1]]\n")
    assert verifier_fingerprint("mine_judge:judge") != before


def test_a_verifier_that_its_module_imports_counts_with_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "inner_judge.py").write_text("def judge(images, texts, candidates): return []\n")
    (tmp_path / "outer_judge.py").write_text("from inner_judge import judge\n")
    before = verifier_fingerprint("outer_judge:judge")
    (tmp_path / "inner_judge.py").write_text("def judge(images, texts, candidates): return [[1]]\n")
    assert verifier_fingerprint("outer_judge:judge") != before


def test_the_stage_is_there_if_and_only_if_a_verifier_is_named() -> None:
    models = Models(kb="kb", ner_model="tagger.pt", encoder="encoder")
    assert "VerifyLinks" not in dict(model_stages(models, AnnotateConfig()))
    config = AnnotateConfig(verify=VerifyConfig(verifier=f"{HERE}:by_colour", verifier_batch_size=3))
    name, stage = model_stages(models, config)[-1]
    assert name == "VerifyLinks" and (stage.verifier, stage.batch_size) == (f"{HERE}:by_colour", 3)  # type: ignore[attr-defined]
