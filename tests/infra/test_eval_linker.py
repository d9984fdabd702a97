"""The command that measures the linker, on a knowledge base of three entities."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from evaluation.linking.gold import GoldMention, GoldText
from infra.wikipedia_sets import TextSet
from pipeline.config import DisambiguateConfig
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity, KnowledgeBase
from pipeline.linking.meaning import TextComparer
from pipeline.schema import ImageText, Mention, Row
from pipeline.stages.disambiguate import disambiguate_row, gather_rows
from pipeline.stages.propose_candidates import propose_row

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_linker", ROOT / "infra" / "eval_linker.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kb_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("kb"))
    with KnowledgeBaseWriter(path) as writer:
        writer.add(Entity(entity_id="Q230", label="Georgia", description="country", popularity=5.0))
        writer.add(Entity(entity_id="Q1428", label="Georgia", description="state of the United States", popularity=9.0))
        writer.add(Entity(entity_id="n1", label="beach", description="shore of sand", popularity=1.0))
        writer.commit(source="test", source_sha256="0")
    return path


def row(text: str, *surfaces: str, kb: KnowledgeBase) -> Row:
    mentions = tuple(
        Mention(start=text.index(one), end=text.index(one) + len(one), surface=one, score=1.0, finder="dictionary")
        for one in surfaces
    )
    pair = ImageText(image_id="a", image=b"", text=text, shard="", row=0)
    return propose_row(Row(pair=pair, mentions=mentions), kb)


def test_the_likeliest_candidate_is_the_most_popular_one(command: ModuleType, kb_path: str) -> None:
    kb = KnowledgeBase.open(kb_path)
    links = command.link_by_prior(row("Georgia beach", "Georgia", "beach", kb=kb))
    assert [(link.start, link.end, link.entity_id) for link in links] == [(0, 7, "Q1428"), (8, 13, "n1")]


@pytest.mark.parametrize(
    ("text", "surface", "linked"),
    [
        ("a trip to Georgia in May", "Georgia", True),
        ("GEORGIA", "GEORGIA", True),
        ("Georgia Aquarium", "Georgia", False),  # part of a longer name
        ("South Georgia", "Georgia", False),
        ("a georgia peach", "georgia", False),  # no capital
        ("Beach at dawn", "Beach", False),  # the base knows it as a common noun
    ],
)
def test_the_rule_links_capitalised_names_that_stand_alone(
    command: ModuleType, kb_path: str, text: str, surface: str, linked: bool
) -> None:
    kb = KnowledgeBase.open(kb_path)
    assert bool(command.rule(kb)(row(text, surface, kb=kb))) == linked


def test_labelled_texts_are_cleaned_and_their_spans_moved(command: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    mention = {"start": 0, "end": 19, "entity_ids": [], "kind": "name"}
    line = {"id": "a", "text": "Marks &amp; Spencer  of <b>Georgia</b>", "mentions": [mention]}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"id": "b", "mentions": []}) + "\n")
    first, second = map(command.clean_gold, command.read_gold(path))
    assert first.text == second.text == "Marks & Spencer of Georgia"
    assert [(one.start, one.end) for one in first.mentions] == [(0, 15)] and second.mentions == ()


def test_a_file_that_is_not_there_is_one_line_and_exit_status_2(
    command: ModuleType,
    kb_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval_linker", "--gold", str(tmp_path / "none.jsonl"), "--kb", kb_path])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.jsonl cannot be read")


def test_all_linkers_are_measured_and_written(
    command: ModuleType,
    kb_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gold = tmp_path / "mine.jsonl"
    mention = {"start": 0, "end": 7, "entity_ids": ["Q1428"], "kind": "name"}
    gold.write_text(json.dumps({"id": "a", "text": "Georgia at dawn", "mentions": [mention]}) + "\n")
    monkeypatch.setattr(command, "load_tagger", lambda name: None)
    monkeypatch.setattr("pipeline.stages.find_mentions.tag_texts", lambda tagger, texts: [[] for _ in texts])
    output = tmp_path / "out" / "linking.json"
    monkeypatch.setattr(sys, "argv", ["eval_linker", "--gold", str(gold), "--kb", kb_path, "--output", str(output)])
    assert command.main() == 0
    found = json.loads(output.read_text())["mine"]
    assert found["likeliest candidate"]["name.precision"]["value"] == 1.0
    assert found["rule"]["name.recall"]["value"] == 1.0
    used = command.weights_of(DisambiguateConfig()).used - {"picture", "compared"}  # which texts alone do not have
    simpler = {"likeliest candidate", "rule", "linker", "linker, never NIL"}
    assert set(found) == simpler | {f"linker without {name}" for name in used}
    assert "mine: 1 texts of 1 groups" in capsys.readouterr().out


def test_labels_that_the_base_lacks_are_nil_or_no_mention(command: ModuleType, kb_path: str) -> None:
    def mention(start: int, ids: str, kind: str) -> GoldMention:
        return GoldMention(start=start, end=start + 1, entity_ids=frozenset(ids.split()), kind=kind)

    mentions = (
        mention(0, "Q230 Q9", "name"),
        mention(1, "Q9", "name"),
        mention(2, "n9", "noun"),
        mention(3, "n1", "noun"),
    )
    text = GoldText(text_id="a", text="abcd", group="a", half="", kind="", mentions=mentions)
    kept = command.for_base(text, KnowledgeBase.open(kb_path)).mentions
    assert [(one.start, set(one.entity_ids)) for one in kept] == [(0, {"Q230"}), (1, set()), (3, {"n1"})]


def test_one_half_alone_is_measured(
    command: ModuleType, kb_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = tmp_path / "mine.jsonl"
    lines = [json.dumps({"id": half, "text": "Georgia", "half": half, "mentions": []}) for half in ("first", "second")]
    gold.write_text("\n".join(lines))
    monkeypatch.setattr(command, "load_tagger", lambda name: None)
    monkeypatch.setattr("pipeline.stages.find_mentions.tag_texts", lambda tagger, texts: [[] for _ in texts])
    weights = command.weights_of(DisambiguateConfig())
    assert list(command.evaluate([gold], kb_path, "", weights, half="second")) == ["mine, second half"]
    assert list(command.evaluate([gold], kb_path, "", weights)) == ["mine, first half", "mine, second half"]


@pytest.mark.parametrize(
    ("entity_id", "kind"), [("Q1", "place"), ("Q2", "place"), ("Q3", "brand"), ("emoji:1", "concept"), ("Q9", "brand")]
)
def test_entities_are_places_brands_or_concepts(command: ModuleType, tmp_path: Path, entity_id: str, kind: str) -> None:
    with KnowledgeBaseWriter(str(tmp_path)) as writer:
        writer.add(Entity(entity_id="Q1", label="Georgia", types=("country",)))
        writer.add(Entity(entity_id="Q2", label="Austin", description="capital city of the U.S. state of Texas"))
        writer.add(Entity(entity_id="Q3", label="Sola", description="city council in Norway"))
        writer.add(Entity(entity_id="emoji:1", label="island", description="island in the sea"))
        writer.commit(source="test", source_sha256="0")
    assert command.entity_kind(KnowledgeBase.open(str(tmp_path)))(entity_id) == kind


def test_evidence_is_gathered_once_and_each_linker_answers_as_it_does_alone(
    command: ModuleType, kb_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kb, weights = KnowledgeBase.open(kb_path), command.weights_of(DisambiguateConfig())
    rows: list[Row] = [row("Georgia beach", "Georgia", "beach", kb=kb), row("Georgia", "Georgia", kb=kb)]
    rows[1] = dataclasses.replace(rows[1], pair=dataclasses.replace(rows[1].pair, image_id="b"))
    gathered: list[str] = []

    def gather(
        some: list[Row], kb: KnowledgeBase, used: frozenset[str], comparer: TextComparer | None
    ) -> list[list[np.ndarray]]:
        gathered.extend(one.pair.image_id for one in some)
        return gather_rows(some, kb, used, comparer)

    monkeypatch.setattr(command, "gather_rows", gather)
    made_of = command.models({one.pair.image_id: one for one in rows}, kb, weights, None)
    links = {name: [link(one) for one in rows] for name, link in made_of.items()}
    assert gathered == ["a", "b"] and len(links) == 2 + len(weights.used - {"picture", "compared"})
    for name, made in links.items():
        is_whole = name in ("linker", "linker, never NIL")
        alone = weights if is_whole else weights.without(name.removeprefix("linker without "))
        if "never" in name:
            alone = dataclasses.replace(alone, probability_min=0.0)
        answered = [disambiguate_row(one, kb, DisambiguateConfig(), alone) for one in rows]
        chosen = [[one.chosen for one in row.linked if one.chosen] for row in answered]
        assert [[link.entity_id for link in of_row] for of_row in made] == chosen
    assert [len(of_row) for of_row in links["linker, never NIL"]] == [2, 1]


def test_a_text_is_embedded_once_whatever_set_it_comes_with(command: ModuleType) -> None:
    class Lengths:
        device = "cpu"
        asked: list[list[str]] = []

        def embed(self, texts: list[str]) -> np.ndarray:
            self.asked.append(texts)
            return np.array([[len(text), 1] for text in texts], np.float32).reshape(len(texts), 2)

    encoder = command.RememberingEncoder(Lengths())
    assert encoder.device == "cpu"
    assert encoder.embed(["bb", "a", "bb"]).tolist() == [[2, 1], [1, 1], [2, 1]]
    assert encoder.embed(["ccc", "a"]).tolist() == [[3, 1], [1, 1]]
    assert encoder.embed(["a"]).tolist() == [[1, 1]]
    assert encoder.embed([]).shape == (0, 2)
    assert [texts for texts in Lengths.asked if texts] == [["a", "bb"], ["ccc"]]


def test_wikipedia_links_are_measured_beside_labelled_texts(
    command: ModuleType, kb_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mentions = (GoldMention(start=0, end=7, entity_ids=frozenset({"Q1428"}), kind="name"),)
    text = GoldText(text_id="a", text="Georgia at dawn", group="a", half="second", kind="", mentions=mentions)
    asked: list[Path] = []

    def second_half_set(kb_source: Path, folder: Path) -> TextSet:
        asked.extend((kb_source, folder))
        return TextSet(name="wikipedia, second half", kb_path=kb_path, texts=[text])

    monkeypatch.setattr(command, "second_half_set", second_half_set)
    monkeypatch.setattr(command, "load_tagger", lambda name: None)
    monkeypatch.setattr("pipeline.stages.find_mentions.tag_texts", lambda tagger, texts: [[] for _ in texts])
    found = command.evaluate_wikipedia(
        tmp_path / "demo", "", command.weights_of(DisambiguateConfig()), tmp_path / "work"
    )
    assert asked == [tmp_path / "demo" / "corpus" / "kb_source.jsonl", tmp_path / "work"]
    prior = found["wikipedia, second half"]["likeliest candidate"]["ambiguous.accuracy"]
    assert (prior.numerator, prior.denominator) == (1, 1)  # Georgia has two entities, and the state is the likelier


def test_composed_texts_are_measured_where_nothing_was_fitted(
    command: ModuleType, kb_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mentions = (GoldMention(start=0, end=7, entity_ids=frozenset({"Q1428"}), kind="name"),)
    text = GoldText(text_id="a", text="Georgia at dawn", group="a", half="", kind="composed", mentions=mentions)
    asked: list[object] = []

    def composed_texts(demo: Path, *, half: str, most: int) -> list[GoldText]:
        asked.extend((demo, half, most))
        return [text]

    monkeypatch.setattr(command, "composed_texts", composed_texts)
    monkeypatch.setattr(command, "load_tagger", lambda name: None)
    monkeypatch.setattr("pipeline.stages.find_mentions.tag_texts", lambda tagger, texts: [[] for _ in texts])
    found = command.evaluate_composed(tmp_path, kb_path, "", command.weights_of(DisambiguateConfig()))
    assert asked == [tmp_path, "measure", 2000]
    assert found["composed texts, half for measuring"]["likeliest candidate"]["place.recall"].value == 1.0


def test_a_file_without_the_half_that_is_asked_for_is_refused(
    command: ModuleType,
    kb_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gold = tmp_path / "mine.jsonl"
    gold.write_text(json.dumps({"id": "a", "text": "Georgia at dawn", "mentions": []}) + "\n")
    monkeypatch.setattr(sys, "argv", ["eval_linker", "--gold", str(gold), "--kb", kb_path, "--half", "second"])
    assert command.main() == 2
    assert "--half second: " in (printed := capsys.readouterr().err) and "has no text of this half" in printed
