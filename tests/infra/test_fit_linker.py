"""The fit of the linker's weights, on mentions whose evidence is set by hand."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad

from evaluation.linking.gold import GoldMention, GoldText
from infra import fit_linker
from infra.fit_linker import (
    Source,
    Taggers,
    calibrate,
    fit,
    labelled_sources,
    limit_of,
    reliability,
    source_of,
    write_weights,
)
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.weights import Weights, read_weights
from pipeline.schema import EVIDENCE, Candidate, ImageText, LinkedMention, Mention, Row, UserError
from pipeline.tagger.train import TrainTaggerConfig

TIED = frozenset(("coherence", "graph"))


def evidence(**values: float) -> list[float]:
    return [values.get(name, 0.0) for name in EVIDENCE]


def mention(*candidates: list[float], right: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the evidence and the answer of one mention; `right` is the place of the right candidate, None for NIL."""
    return np.array(candidates), np.array([place == right for place in range(len(candidates))])


def source(kb: KnowledgeBase, *mentions: tuple[np.ndarray, np.ndarray], weight: float = 1.0) -> Source:
    row = Row(pair=ImageText(image_id="a", image=b"", text="", shard="", row=0))
    return Source(
        name="by hand",
        rows=[row] * len(mentions),
        evidence=[[table] for table, _ in mentions],
        right=[[right] for _, right in mentions],
        kb=kb,
        weight=weight,
    )


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        writer.add(Entity(entity_id="Q230", label="Georgia", popularity=5.0))
        writer.add(Entity(entity_id="Q1428", label="Georgia", popularity=9.0))
        writer.commit(source="test", source_sha256="0")
    return KnowledgeBase.open(path)


# The candidate that the text explains is right; where it explains none, the answer is NIL.
BY_TEXT = (
    mention(evidence(prior=-0.1), evidence(prior=-2.3, text=1.0), right=1),
    mention(evidence(prior=-2.3, text=1.0), evidence(prior=-0.1), right=0),
    mention(evidence(prior=-0.1), evidence(prior=-2.3), right=None),
)


def weight_of(weights: Weights, name: str) -> float:
    return weights.of_evidence[EVIDENCE.index(name)]


def test_evidence_that_decides_gets_the_weight(kb: KnowledgeBase) -> None:
    weights = fit([source(kb, *BY_TEXT)], off=TIED)
    assert weight_of(weights, "text") > 2 > abs(weight_of(weights, "prior"))
    assert weights.bias < 0  # without the text's support the answer is NIL
    assert weights.used <= {"prior", "text"}


def test_evidence_that_is_off_gets_none(kb: KnowledgeBase) -> None:
    assert "text" not in fit([source(kb, *BY_TEXT)], off=TIED | {"text"}).used


def test_hardly_any_weight_is_none() -> None:
    weights = fit_linker.pruned(Weights(of_evidence=tuple(evidence(prior=0.05, text=-0.0499, seen=-2.0)), bias=0.01))
    assert weights == Weights(of_evidence=tuple(evidence(prior=0.05, seen=-2.0)), bias=0.01)


def test_a_source_of_more_weight_has_more_say(kb: KnowledgeBase) -> None:
    in_base = mention(evidence(text=1.0), right=0)
    outside = mention(evidence(text=1.0), right=None)

    def share(weight: float) -> float:
        weights = fit([source(kb, in_base, weight=weight), source(kb, outside)], off=TIED)
        return 1 / (1 + math.exp(-(weights.bias + weight_of(weights, "text"))))

    # Two sources contradict each other: the probability is their weighted mean, but for the small penalty.
    assert share(1.0) == pytest.approx(0.5, abs=0.02)
    assert share(3.0) == pytest.approx(0.75, abs=0.02)


def test_the_gradient_is_that_of_the_loss(kb: KnowledgeBase) -> None:
    tables = [fit_linker.table_of(source(kb, *BY_TEXT)), fit_linker.table_of(source(kb, BY_TEXT[2], weight=0.5))]
    in_use = np.ones(len(EVIDENCE), bool)
    point = np.linspace(-1, 1, len(EVIDENCE) + 1)
    error = check_grad(
        lambda x: fit_linker.cross_entropy(x, tables, in_use)[0],
        lambda x: fit_linker.cross_entropy(x, tables, in_use)[1],
        point,
    )
    assert error < 1e-5


def test_a_calibration_moves_only_the_addend_and_popularity(kb: KnowledgeBase) -> None:
    weights = Weights(of_evidence=tuple(evidence(text=2.0)), bias=0.0)
    # Half of the known names and none of the unknown ones are in the base.
    known, unknown = evidence(popularity=3.0), evidence(popularity=0.0)
    texts = source(
        kb, mention(known, right=0), mention(known, right=None), *[mention(unknown, right=None) for _ in range(20)]
    )
    calibrated, parameters = calibrate(weights, [texts])
    assert weight_of(calibrated, "text") == 2.0
    assert parameters["popularity"] == weight_of(calibrated, "popularity") > 0
    assert parameters["addend"] == calibrated.bias < 0


def labelled(kb: KnowledgeBase, *mentions: tuple[float, str]) -> Source:
    """Returns a source with a mention "Georgia" of one candidate, Q230, per text: its "text" and what it means."""
    rows, texts = [], []
    for place, (_, meant) in enumerate(mentions):
        found = Mention(start=0, end=7, surface="Georgia", score=1.0, finder="dictionary")
        one = LinkedMention(
            mention=found, candidates=(Candidate(entity_id="Q230", prior=1.0),), chosen=None, probability=0.0
        )
        pair = ImageText(image_id=str(place), image=b"", text="Georgia", shard="", row=0)
        rows.append(Row(pair=pair, linked=(one,)))
        ids = frozenset((meant,) if meant else ())
        gold = (GoldMention(start=0, end=7, entity_ids=ids, kind="name"),)
        texts.append(GoldText(text_id=str(place), text="Georgia", group="", half="first", kind="", mentions=gold))
    tables = [[np.array([evidence(text=value)])] for value, _ in mentions]
    right: list[list[np.ndarray | None]] = [[np.array([meant == "Q230"])] for _, meant in mentions]
    return Source(name="labelled", rows=rows, evidence=tables, right=right, kb=kb, texts=texts)


def test_the_least_probability_of_a_link_leaves_most_room_above_precision_and_recall(kb: KnowledgeBase) -> None:
    # The scores are logits, so these are the probabilities.
    by = Weights(of_evidence=tuple(evidence(text=1.0)), bias=0.0)
    chances = [math.log(p / (1 - p)) for p in (0.505, 0.605, 0.705, 0.805, 0.905)]
    texts = labelled(kb, *zip(chances, ("", "Q230", "", "Q230", "Q230"), strict=True))
    # Up to 0.60 four are linked: precision 0.75, recall 1, so the lead is -0.10. Up to 0.70: precision 2/3, recall 2/3.
    # From 0.71 on two are linked, both right: precision 1, recall 2/3, a lead of 0.017. From 0.81 on: recall 1/3.
    assert limit_of(by, [texts], []) == 0.71
    # Of another source both names are linked, and right, up to 0.72, so the first one decides.
    other = labelled(kb, (math.log(0.755 / 0.245), "Q230"), (math.log(0.725 / 0.275), "Q230"))
    assert limit_of(by, [other], []) == 0.4  # of equal ones the smallest
    assert limit_of(by, [texts, other], []) == 0.71


def test_the_limit_leaves_room_above_the_share_of_names_outside_the_base_that_end_as_nil(kb: KnowledgeBase) -> None:
    by = Weights(of_evidence=tuple(evidence(text=1.0)), bias=0.0)

    def logits(*chances: float) -> list[float]:
        return [math.log(p / (1 - p)) for p in chances]

    texts = labelled(kb, *[(value, "Q230") for value in logits(0.605, 0.905)])
    # Alone: up to 0.60 precision and recall are 1, a lead of 0.15.
    assert limit_of(by, [texts], []) == 0.4
    # Of ten names outside the base seven end as NIL from 0.51 on, and eight, a lead of 0.1, from 0.56 on.
    outside = [(value, "") for value in logits(*[0.3] * 6, 0.505, 0.555, 0.955, 0.955)]
    assert limit_of(by, [texts], [labelled(kb, *outside)]) == 0.56
    # Sources count together, by the names that they have.
    assert limit_of(by, [texts], [labelled(kb, *outside[:8]), labelled(kb, *outside[8:])]) == 0.56
    # A name of the base is none of them, and neither is one that is a fit's label alone.
    known = labelled(kb, *[(value, "Q230") for value in logits(0.955, 0.955)])
    likely = dataclasses.replace(labelled(kb, *outside[8:]), texts=())
    assert limit_of(by, [texts], [labelled(kb, *outside), known, likely]) == 0.56


def limit_by_texts(weights: Weights, texts: Source) -> float:
    return limit_of(weights, [texts], [])


def test_answers_are_found_on_the_ties_under_the_final_weights(kb: KnowledgeBase) -> None:
    by = Weights(of_evidence=tuple(evidence(text=1.0, coherence=1.0)), bias=0.0)
    texts = labelled(kb, (1.0, "Q230"), (2.0, "Q230"))
    tied, expected = evidence(text=1.0, coherence=100.0), evidence(text=1.0, coherence=1.0)
    texts.rows[0] = dataclasses.replace(texts.rows[0], linked=texts.rows[0].linked * 2)
    texts.right[0] *= 2
    for found in (limit_by_texts, reliability):
        texts.evidence[0] = [np.array([tied]), np.array([tied])]  # as other weights left them
        found(by, texts)
        for table in texts.evidence[0]:
            np.testing.assert_array_equal(table, [expected])  # one entity, twice


def test_a_mention_without_a_candidate_has_no_answer(kb: KnowledgeBase) -> None:
    by = Weights(of_evidence=tuple(evidence(text=1.0)), bias=0.0)
    texts = labelled(kb, (0.0, "Q230"), (math.log(3), ""))
    texts.evidence[0] = [np.zeros((0, len(EVIDENCE)))]
    [(row, place, shares, right)] = fit_linker.answers_of(by, texts)
    assert (row, place, shares.tolist()) == (texts.rows[1], 0, [pytest.approx(0.75)])
    assert right is texts.right[1][0]


def test_reliability_compares_probability_and_share(kb: KnowledgeBase) -> None:
    weights = Weights(of_evidence=tuple(evidence(text=math.log(3))), bias=0.0)
    texts = source(
        kb,
        *[mention(evidence(text=1.0), right=0)] * 3,
        mention(evidence(text=1.0), right=None),
        mention(evidence(), right=None),
    )
    # A score of ln 3 is a probability of 3/4, one of 0 is 1/2.
    assert reliability(weights, texts) == [(0.5, 0.0, 1), (pytest.approx(0.75), 0.75, 4)]


@pytest.mark.parametrize(
    ("is_complete", "answers"), [(True, [[True, False], [False, False]]), (False, [[True, False]])]
)
def test_answers_come_from_the_labels_that_overlap(
    kb: KnowledgeBase, is_complete: bool, answers: list[list[bool]]
) -> None:
    text = "Georgia, then Georgia"
    candidates = tuple(Candidate(entity_id=one, prior=0.5) for one in ("Q230", "Q1428"))
    linked = tuple(
        LinkedMention(
            mention=Mention(start=start, end=start + 7, surface="Georgia", score=1.0, finder="dictionary"),
            candidates=candidates,
            chosen=None,
            probability=0.0,
        )
        for start in (0, 14)
    )
    row = Row(pair=ImageText(image_id="a", image=b"", text=text, shard="", row=0), linked=linked)
    label = GoldMention(start=0, end=7, entity_ids=frozenset(("Q230",)), kind="name")
    gold = GoldText(text_id="a", text=text, group="a", half="first", kind="", mentions=(label,))
    found = source_of("one", [gold], {"a": row}, kb, is_complete=is_complete)
    assert [one.tolist() for one in found.right[0] if one is not None] == answers
    assert found.num_mentions == len(answers)
    popularity = EVIDENCE.index("popularity")
    assert found.evidence[0][0][:, popularity] == pytest.approx([math.log(6), math.log(10)])


def test_weights_are_written_as_they_are_read(tmp_path: Path) -> None:
    weights = Weights(of_evidence=tuple(evidence(prior=0.5, text=2.0)), bias=-1.5, probability_min=0.4)
    write_weights(tmp_path / "weights.json", weights, fitted_on={"texts": "hash"})
    assert read_weights(str(tmp_path / "weights.json")) == weights
    assert json.loads((tmp_path / "weights.json").read_text())["fitted_on"] == {"texts": "hash"}


def test_popularity_that_is_off_stays_out_of_the_calibration(kb: KnowledgeBase) -> None:
    texts = source(kb, mention(evidence(popularity=3.0), right=0), mention(evidence(), right=None))
    calibrated, parameters = calibrate(
        Weights(of_evidence=tuple(evidence(text=2.0)), bias=0.0), [texts], off=frozenset(("popularity",))
    )
    assert weight_of(calibrated, "popularity") == parameters["popularity"] == 0.0


def test_labelled_texts_without_a_first_half_cannot_calibrate(kb: KnowledgeBase, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "text": "Georgia", "mentions": []}\n')
    with pytest.raises(UserError, match=r"--labelled .*mine.jsonl: no text has the half 'first'"):
        labelled_sources([path], kb, Taggers("none", tmp_path))


def test_texts_of_a_fold_are_read_by_a_tagger_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(config: TrainTaggerConfig) -> str:
        trained.append(config.fold)
        Path(config.output).mkdir(parents=True, exist_ok=True)
        Path(config.output, "best-model.pt").touch()
        return ""

    monkeypatch.setattr("infra.fit_linker.train_tagger", train)
    taggers = Taggers("demo.pt", tmp_path)
    assert taggers.for_fold("") == "demo.pt" and trained == []
    paths = [taggers.for_fold(fold) for fold in ("a", "b", "a")]
    assert trained == ["b", "a"]  # each once
    assert paths[0] == paths[2] != paths[1] and all(Path(path).is_file() for path in paths)
    (tmp_path / "tagger-of-a" / "trained-by.txt").write_text("other code")
    taggers.for_fold("b")
    assert trained == ["b", "a", "a"]
