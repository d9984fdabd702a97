"""The excerpt and its tables belong together."""

import collections
import json
from pathlib import Path

import pytest

from pipeline.schema import UserError
from pipeline.wiki import excerpt
from pipeline.wiki.excerpt import REDIRECTS, TITLES, excerpt_path, read_excerpt, read_parts
from pipeline.wiki.titles import read_redirects, read_titles

CAPTIONS = Path(__file__).resolve().parents[3] / "evaluation" / "linking" / "labelled" / "captions.jsonl"


def test_every_article_has_a_half_and_the_first_half_two_folds():
    counts = collections.Counter((part.half, part.fold) for part in read_parts().values())
    assert set(counts) == {("first", "a"), ("first", "b"), ("second", "")}
    assert counts["first", "a"] + counts["first", "b"] == 61 and counts["second", ""] == 45


def test_captions_are_in_the_half_of_their_article():
    rows = [json.loads(line) for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]
    assert {(row["group"], row["half"]) for row in rows} <= {(t, part.half) for t, part in read_parts().items()}


def test_an_article_is_read_in_its_half_and_fold_only():
    folds = {fold: [article.title for article in read_excerpt(half="first", fold=fold)] for fold in ("a", "b")}
    assert "Alabama" in folds["a"] and "Angola" in folds["b"] and not set(folds["a"]) & set(folds["b"])
    assert len(folds["a"]) + len(folds["b"]) == 61


def test_titles_lead_to_entities_and_redirects_end():
    titles, redirects = read_titles(TITLES), read_redirects(REDIRECTS)
    assert titles["Georgia (country)"] == ("Q230",) and titles["Georgia (U.S. state)"] == ("Q1428",)
    assert "London" not in titles  # the base has another one
    assert not set(redirects) & set(redirects.values())


def test_a_gensim_without_the_excerpt_is_named(monkeypatch):
    monkeypatch.setattr(excerpt, "_FILE", "other.bz2")
    with pytest.raises(UserError, match="gensim: other.bz2 is not in the package; install gensim 4.4.0 from its wheel"):
        excerpt_path()
