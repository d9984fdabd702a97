"""Training texts for the tagger, and a tagger of a few sentences."""

import random

import pytest

from pipeline.kb.tagger import load_tagger, split_tokens, tag_texts
from pipeline.kb.train_tagger import (
    TrainTaggerConfig,
    fill_templates,
    mark_repeated_names,
    read_wiki_sentences,
    train_tagger,
)
from pipeline.schema import UserError


def test_links_of_wiki_text_become_spans_and_common_nouns_do_not():
    text = (
        "In ''1905'' the [[physicist]] [[Albert Einstein|Einstein]] moved to [[Bern]], where he worked on.<ref>x</ref>"
    )
    [(plain, spans)] = read_wiki_sentences(text)
    assert plain == "In 1905 the physicist Einstein moved to Bern, where he worked on."
    assert [plain[start:end] for start, end in spans] == ["Einstein", "Bern"]


def test_tables_files_and_broken_links_are_no_sentences():
    lines = [
        "| a cell of a table with a [[Link]] that goes on for more than sixty characters in all",
        "[[File:Photo.jpg|thumb|a picture with a [[Link]] that goes on for more than sixty characters]]",
        "A sentence with a [[Broken link that never ends and goes on for more than sixty characters.",
    ]
    assert list(read_wiki_sentences("\n".join(lines))) == []


def test_a_name_is_marked_at_its_second_place_as_well():
    text = "Bern is old. Einstein liked Bern"
    assert mark_repeated_names(text, [(0, 4)], {"Bern"}) == [(0, 4), (28, 32)]


def test_templates_hold_the_names_at_their_spans():
    for text, spans in fill_templates(["Bern", "Ayn Rand"], 200, random.Random(0)):
        assert all(text[start:end].lower() in ("bern", "ayn rand") for start, end in spans)


def test_tokens_keep_apostrophes_and_inner_dots():
    text = "McDonald's in St.Gallen, A&W!"
    expected = ["McDonald's", "in", "St.Gallen", ",", "A&W", "!"]
    assert [text[start:end] for start, end in split_tokens(text)] == expected


def test_a_missing_tagger_names_the_command_that_trains_one(tmp_path):
    with pytest.raises(UserError, match="python -m pipeline.kb.train_tagger"):
        load_tagger(str(tmp_path / "best-model.pt"))


def test_an_argument_out_of_range_is_named(tmp_path):
    with pytest.raises(UserError, match="--num-epochs 0: must be at least 1"):
        train_tagger(TrainTaggerConfig(output=str(tmp_path), num_epochs=0))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    config = TrainTaggerConfig(
        output=str(tmp_path_factory.mktemp("tagger")), num_sentences=40, num_templates=160, num_epochs=3
    )
    return load_tagger(train_tagger(config))


def test_what_stands_beside_a_text_does_not_change_its_tags(tagger):
    texts = ["Photo of Bern", "", "Bern", "A long text about Alabama and about Aristotle " * 5, "Photo of Bern", "..."]
    together = tag_texts(tagger, texts)
    assert together == [tag_texts(tagger, [text])[0] for text in texts]
    assert together[0] == together[4]
    assert together[1] == []
    assert any(together)


def test_tags_are_spans_of_the_text(tagger):
    text = "Portrait of  Ayn Rand,painted in Alabama"  # two blanks, and none behind the comma
    [spans] = tag_texts(tagger, [text])
    edges = {edge for token in split_tokens(text) for edge in token}
    assert all(span.start in edges and span.end in edges and 0 <= span.score <= 1 for span in spans)
