"""The fit of what pictures say, on mentions whose similarities are set by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.demo.labels import PairTruth, TrueMention
from infra import fit_picture as command
from infra.fit_linker import Source
from infra.fit_picture import (
    ask_pictures,
    compared_source,
    fit_picture,
    held_out_pairs,
    measure,
    text_only,
    true_entity,
    write_weights,
)
from pipeline.config import DisambiguateConfig
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.weights import Weights, read_weights
from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row, UserError


def weights(bias: float = 0.0, **of_evidence: float) -> Weights:
    return Weights(of_evidence=tuple(of_evidence.get(name, 0.0) for name in EVIDENCE), bias=bias)


def pair(image_id: str, shard: str = "s") -> ImageText:
    return ImageText(image_id=image_id, image=b"", text="Georgia", shard=shard, row=0)


def mention(*candidates: dict[str, float], start: int = 0, scores: tuple[float, ...] = ()) -> LinkedMention:
    """Returns a mention with a candidate for each evidence by name."""
    return LinkedMention(
        mention=Mention(start=start, end=start + 7, surface="Georgia", score=1.0, finder="tagger"),
        candidates=tuple(
            Candidate(
                entity_id=f"Q{place}",
                prior=0.5,
                score=scores[place] if scores else 0.0,
                evidence=tuple(evidence.get(name, 0.0) for name in EVIDENCE),
            )
            for place, evidence in enumerate(candidates)
        ),
        chosen=None,
        probability=0.0,
    )


def true_mention(entity_id: str | None, start: int = 0, end: int = 7) -> TrueMention:
    return TrueMention(start=start, end=end, entity_id=entity_id, kind="flag", ambiguous=True, has_context=True)


def truth_of(*mentions: TrueMention) -> PairTruth:
    return PairTruth(picture_entity_id="Q0", kind="flag", mentions=mentions, half="fit")


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        for place in range(2):
            writer.add(Entity(entity_id=f"Q{place}", label="Georgia", popularity=1.0))
        writer.commit(source="test", source_sha256="0")
    return KnowledgeBase.open(path)


def test_the_pairs_of_shards_that_the_encoder_was_trained_on_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("corpus", "pairs"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        (tmp_path / "corpus" / f"pairs-{number}.tar").touch()
    trained_on = [{"path": "/elsewhere/corpus/pairs-0.tar"}, {"path": "/elsewhere/corpus/pairs-2.tar"}]
    record = tmp_path / "pairs" / "manifest.json"
    record.write_text(json.dumps({"inputs": trained_on}))
    monkeypatch.setattr(command, "read_shard", lambda path: [pair(Path(path).name, path), "a rejection"])
    assert [one.image_id for one in held_out_pairs(tmp_path)] == ["pairs-1.tar"]
    record.write_text(json.dumps({"inputs": [*trained_on, {"path": "pairs-1.tar"}]}))
    with pytest.raises(UserError, match="the encoder was trained on all shards"):
        held_out_pairs(tmp_path)
    record.write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read .*; run make demo"):
        held_out_pairs(tmp_path)


def test_the_answer_of_a_mention_is_the_true_one_that_shares_most_characters() -> None:
    found = mention({}, start=10)  # 10 to 17
    few, most, beside = true_mention("Q1", 0, 12), true_mention("Q2", 12, 20), true_mention("Q3", 17, 30)
    assert true_entity(found, [few, most, beside]) == "Q2"
    assert true_entity(found, [beside]) is None
    assert true_entity(found, [true_mention(None, 10, 17), few]) is None


def test_only_mentions_that_were_compared_are_fitted(kb: KnowledgeBase) -> None:
    compared = mention({"picture": 2.0, "compared": 1.0}, {"compared": 1.0})
    row = Row(pair=pair("a"), linked=(mention({"prior": -1.0}), compared, mention()))
    rejected = Row(pair=pair("b"), linked=(compared,)).rejected(stage="score_images", reason="all_nil")
    truth = {"a": truth_of(true_mention("Q1")), "b": truth_of(true_mention(None))}
    source = compared_source([row, rejected], truth, kb)
    assert [one.linked for one in source.rows] == [(compared,), (compared,)]
    assert [[one.tolist() for one in right if one is not None] for right in source.right] == [
        [[False, True]],
        [[False, False]],
    ]


def test_the_weight_of_the_picture_is_found_and_those_of_the_text_stay(kb: KnowledgeBase) -> None:
    # 3 of 4 times the candidate that the picture is 1 like is right, else NIL: with the text's sum of 0.5 - 0.5 = 0 the
    # weights w and a of the picture and of having been compared give it exp(w + a), NIL 1, and the other exp(a).
    like = {"prior": 0.5, "picture": 1.0, "compared": 1.0}
    unlike = {"prior": 0.5, "compared": 1.0}
    rows = [Row(pair=pair("a"), linked=(mention(like, unlike),))] * 4
    evidence = [[np.array([one.evidence for one in row.linked[0].candidates])] for row in rows]
    right: list[list[np.ndarray | None]] = [[np.array([True, False])]] * 3 + [[np.array([False, False])]]
    source = Source(name="by hand", rows=rows, evidence=evidence, right=right, kb=kb)
    fitted = fit_picture(source, weights(bias=-0.5, prior=1.0, picture=9.0, compared=9.0))
    found = dict(zip(EVIDENCE, fitted.of_evidence, strict=True))
    assert (fitted.bias, found["prior"], set(fitted.used)) == (-0.5, 1.0, {"prior", "picture", "compared"})
    # Without the penalty they would be exactly 3 : 1 : 0; with it nearly.
    share = math.exp(found["picture"] + found["compared"])
    assert share / (share + 1 + math.exp(found["compared"])) == pytest.approx(0.75, abs=0.03)
    assert math.exp(found["compared"]) / share < 0.05


def test_the_picture_is_no_part_of_the_text() -> None:
    assert text_only(weights(prior=1.0, picture=2.0, compared=-1.0)) == weights(prior=1.0)


class NoEncoder:
    """Says of every picture and text the same, so that nothing stands out."""

    def preprocess(self, picture: object) -> np.ndarray:
        return np.zeros((2, 2, 3), np.float32)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        return np.ones((len(pixels), 1), np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


def test_pictures_are_opened_for_names_in_doubt_alone_and_the_cost_is_counted(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.score_images.decode_image", lambda image: Image.new("RGB", (2, 2)))
    config = DisambiguateConfig(doubt_min=0.4, doubt_max=0.95)
    linked = mention({}, {}, scores=(0.4, 0.3))
    linked = LinkedMention(mention=linked.mention, candidates=linked.candidates, chosen="Q0", probability=0.4)
    rows = [
        Row(pair=pair("sure"), linked=(mention({}, {}, scores=(0.01, 0.98)),)),
        Row(pair=pair("nil in doubt"), linked=(mention({}, {}, scores=(0.3, 0.2)),)),
        Row(pair=pair("linked in doubt"), linked=(linked, mention({}, scores=(0.1,)))),
    ]
    asking = weights(picture=1.0, compared=1.0)
    answered, cost = ask_pictures(rows, NoEncoder(), kb, config, asking)  # type: ignore[arg-type]
    assert answered[0] is rows[0]
    # Both candidates have exp(1), NIL 1: together 0.845.
    assert [one.linked[0].chosen for one in answered[1:]] == ["Q0", "Q0"]
    assert (cost.num_mentions, cost.num_in_doubt, cost.num_linked_rows, cost.num_further_rows) == (4, 2, 1, 1)


def test_names_without_a_row_count_as_not_found() -> None:
    right = mention({})
    row = Row(
        pair=pair("a"),
        linked=(LinkedMention(mention=right.mention, candidates=right.candidates, chosen="Q0", probability=1.0),),
    )
    truth = {"a": truth_of(true_mention("Q0")), "b": truth_of(true_mention("Q0"))}
    assert measure([row], truth) == {
        "ambiguous_accuracy": 0.5,
        "refused": 0.5,
        "linking.precision": 1.0,
        "linking.recall": 0.5,
    }


def test_the_file_keeps_what_else_it_states(tmp_path: Path) -> None:
    stated = tmp_path / "text.json"
    stated.write_text(
        '{"format_version": 1, "bias": -0.5, "weights": {"compared": 7, "prior": 1.0}, "knowledge_base": "b"}'
    )
    output = tmp_path / "all.json"
    write_weights(output, stated, weights(bias=-0.5, prior=1.0, picture=0.8), fitted_on="f", encoder="e")
    assert json.loads(output.read_text()) == {
        "format_version": 1,
        "bias": -0.5,
        "weights": {"prior": 1.0, "picture": 0.8},
        "knowledge_base": "b",
        "picture_fitted_on": {"composed pairs": "f", "encoder": "e"},
    }
    assert read_weights(str(output)).sees_pictures


def test_a_missing_weights_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.json")
    monkeypatch.setattr("sys.argv", ["fit_picture.py", "--demo", str(tmp_path), "--weights", missing])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith(f"error: --weights {missing}: cannot be read")
