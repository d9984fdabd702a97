"""The labelled texts of the project are what their README says."""

from collections import Counter
from pathlib import Path

import pytest

from evaluation.linking import gold

FOLDER = Path(gold.__file__).parent / "labelled"


def test_no_article_is_on_both_sides_and_the_halves_are_even() -> None:
    texts = gold.read_gold(FOLDER / "captions.jsonl")
    assert len(texts) == 438 and all(10 <= len(one.text) <= 300 for one in texts)
    assert max(Counter(one.group for one in texts).values()) == 8
    halves = {half: {one.group for one in texts if one.half == half} for half in ("first", "second")}
    assert not halves["first"] & halves["second"]
    assert Counter(one.half for one in texts) == {"first": 220, "second": 218}


def test_alt_texts_are_of_ten_kinds_in_both_halves() -> None:
    texts = gold.read_gold(FOLDER / "alt_texts.jsonl")
    kinds = Counter(one.kind for one in texts)
    assert kinds == {
        "shop": 50, "stock": 50, "travel": 40, "news": 30, "meme": 25, "file": 25, "hash": 20, "caps": 20, "list": 20,
        "lang": 20,
    }  # fmt: skip
    by_half = {half: Counter(one.kind for one in texts if one.half == half) for half in ("first", "second")}
    assert all(abs(by_half["first"][kind] - by_half["second"][kind]) <= 1 for kind in kinds)
    # At least three in ten name something that the base lacks.
    assert sum(any(not one.entity_ids for one in text.mentions) for text in texts) >= 0.3 * len(texts)


@pytest.mark.parametrize("name", ["captions.jsonl", "alt_texts.jsonl"])
def test_nouns_are_labelled_only_where_the_base_has_them_and_spans_carry_no_blanks(name: str) -> None:
    for text in gold.read_gold(FOLDER / name):
        for mention in text.mentions:
            surface = text.text[mention.start : mention.end]
            assert surface == surface.strip(" .,") or surface.endswith((".", ",")) and "." in surface[:-1], surface
            assert mention.entity_ids or mention.kind == "name", surface
