"""Labelled texts of Wikipedia with the bases that they are for, from three articles."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from infra import wikipedia_sets
from infra.wikipedia_sets import first_half_sets, proper_names_in, second_half_set
from pipeline.build_kb import BuildKbConfig, build_kb
from pipeline.kb.store import KnowledgeBase
from pipeline.wiki.articles import Article, read_markup

LINES = [
    {"id": "Q230", "label": "Georgia", "description": "country"},
    {"id": "Q1", "label": "Best Buy", "description": "shop"},
    {"id": "n1", "label": "beach", "description": "shore"},
]
MARKUP = {
    ("first", "a"): "[[Georgia (country)|Georgia]] has a [[Tide]] and a best buy. The Tide comes.",
    ("first", "b"): "[[Georgia (U.S. state)|Georgia]] has a beach. The [[Tide]] comes. So does [[Nobody]].",
    ("second", ""): "The [[Georgia (country)|Georgia]] of [[Nobody]]. A [[Tide (brand)|Tide]].",
}


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    source = tmp_path / "kb_source.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    build_kb(BuildKbConfig(source=str(source), output=str(tmp_path / "kb")))

    def read_excerpt(*, half: str, fold: str = "") -> list[Article]:
        return [
            Article(title=f"{one}{other}", redirect="", paragraphs=tuple(read_markup(markup)))
            for (one, other), markup in MARKUP.items()
            if one == half and fold in ("", other)
        ]

    monkeypatch.setattr(wikipedia_sets, "read_excerpt", read_excerpt)
    monkeypatch.setattr(wikipedia_sets, "KEPT_SHARE", 1.0)
    return source, str(tmp_path / "kb")


def labels(one: wikipedia_sets.TextSet) -> list[tuple[str, list[str]]]:
    return [
        (text.text[mention.start : mention.end], sorted(mention.entity_ids))
        for text in one.texts
        for mention in text.mentions
    ]


def test_the_second_half_is_measured_with_the_links_of_the_first(demo: tuple[Path, str], tmp_path: Path) -> None:
    merged = second_half_set(demo[0], tmp_path / "sets")
    # "Nobody" is in the base, since the first half links it; the other Tide is outside, though its name is known.
    assert labels(merged) == [("Georgia", ["Q230"]), ("Nobody", ["enwiki:Nobody"]), ("Tide", [])]
    georgia = {entry.entity_id: entry.prior for entry in KnowledgeBase.open(merged.kb_path).entries("georgia")}
    assert set(georgia) == {"Q230", "enwiki:Georgia (U.S. state)"}


def test_a_fold_is_seen_with_the_links_of_the_other(demo: tuple[Path, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs-0.tar", "w") as tar:
        for name, content in (("1.png", b"not read"), ("1.txt", b"Georgia, mountains")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sets = first_half_sets(demo[0], str(tmp_path / "pairs-*.tar"), tmp_path / "sets")
    fold_a, demo_a, fold_b, demo_b = sets
    tide = ("Tide", ["enwiki:Tide"])
    assert labels(fold_a) == [("Georgia", ["Q230"]), tide, tide]
    assert labels(fold_b) == [("Georgia", []), ("Tide", ["enwiki:Tide"])]  # the state is not linked in fold a
    assert labels(demo_a) == [("Georgia", ["Q230"]), ("Tide", []), ("best buy", [])]
    assert labels(demo_b) == [("Georgia", [])]
    # Links alone say less: that is what a limit is set by.
    assert [one.links for one in (demo_a, demo_b)] == [(), ()]
    assert [(text.text, text.mentions) for text in fold_a.links] == [
        (text.text, text.mentions) for text in fold_a.texts[:1]
    ]
    # Neither base has counted links of the texts that it is for: in fold b the country is not linked.
    of_a, of_b = (KnowledgeBase.open(one.kb_path) for one in (demo_a, demo_b))
    assert {entry.entity_id for entry in of_b.entries("georgia")} == {"Q230"}
    assert of_a.usage.num_texts == 1


def test_a_base_is_built_again_when_its_source_has_changed(
    demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(config: BuildKbConfig) -> None:
        built.append(config.output)
        build_kb(config)

    monkeypatch.setattr(wikipedia_sets, "build_kb", build)
    second_half_set(demo[0], tmp_path / "sets")
    second_half_set(demo[0], tmp_path / "sets")
    assert len(built) == 1
    demo[0].write_text(demo[0].read_text() + json.dumps({"id": "Q2", "label": "x"}) + "\n")
    second_half_set(demo[0], tmp_path / "sets")
    assert len(built) == 2


def test_common_nouns_of_the_base_are_no_proper_names(demo: tuple[Path, str]) -> None:
    names_in = proper_names_in(KnowledgeBase.open(demo[1]))
    assert names_in("a best buy at the beach") == [(2, 10)]
