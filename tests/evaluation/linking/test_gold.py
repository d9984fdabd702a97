import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.linking.gold import GoldMention, read_gold
from pipeline.schema import UserError

TEXT = "Georgia beach, Banff National Park"
NAME = {"start": 0, "end": 7, "surface": "Georgia", "entity_ids": ["Q230", "Q1428"], "kind": "name"}
PARK = {"start": 15, "end": 34, "entity_ids": [], "kind": "name"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_labelled_text_is_read_with_its_mentions_in_order(tmp_path: Path) -> None:
    row = {"id": "a", "text": TEXT, "group": "Canada", "half": "second", "kind": "travel", "mentions": [PARK, NAME]}
    (text,) = read_gold(write(tmp_path / "gold.jsonl", row))
    assert (text.text_id, text.text, text.group, text.half, text.kind) == ("a", TEXT, "Canada", "second", "travel")
    assert text.mentions == (
        GoldMention(start=0, end=7, entity_ids=frozenset({"Q230", "Q1428"}), kind="name"),
        GoldMention(start=15, end=34, entity_ids=frozenset(), kind="name"),
    )


def test_mentions_may_touch(tmp_path: Path) -> None:
    beach = NAME | {"start": 7, "end": 13, "surface": " beach"}
    (text,) = read_gold(write(tmp_path / "gold.jsonl", {"id": "a", "text": TEXT, "mentions": [NAME, beach]}))
    assert [(one.start, one.end) for one in text.mentions] == [(0, 7), (7, 13)]


def test_a_message_names_the_file_the_line_and_the_remedy(tmp_path: Path) -> None:
    good = {"id": "a", "text": TEXT, "mentions": []}
    path = write(tmp_path / "gold.jsonl", good, {"id": "b", "mentions": []})
    with pytest.raises(UserError) as error:
        read_gold(path)
    remedy = "each line needs id, text and mentions with start, end, entity_ids and kind"
    assert str(error.value) == f"{path}, line 2: field 'text' is None; {remedy}"
    path = write(tmp_path / "gold.jsonl", good | {"mentions": [{"start": 0, "end": "x"}]})
    with pytest.raises(UserError) as error:
        read_gold(path)
    assert str(error.value) == (
        f"{path}, line 1: the mention {{'start': 0, 'end': 'x'}} lacks a field or has a wrong one "
        f"(ValueError(\"invalid literal for int() with base 10: 'x'\")); {remedy}"
    )
    with pytest.raises(UserError, match="twice.jsonl"):
        read_gold(write(tmp_path / "twice.jsonl", good, good))


def test_a_text_without_group_is_a_group_of_its_own(tmp_path: Path) -> None:
    (text,) = read_gold(write(tmp_path / "gold.jsonl", {"id": "a", "text": TEXT, "mentions": []}))
    assert (text.group, text.half, text.kind, text.mentions) == ("a", "", "", ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": TEXT, "mentions": []}, "line 1: field 'id' is None; each line needs id, text and mentions"),
        ({"id": "a", "text": TEXT, "mentions": "none"}, "line 1: field 'mentions' is 'none'"),
        ({"id": "a", "text": TEXT, "half": "third", "mentions": []}, "half is 'third', it must be first or second"),
        ({"id": "a", "text": TEXT, "mentions": [{"start": 0}]}, "lacks a field or has a wrong one"),
        ({"id": "a", "text": TEXT, "mentions": [NAME | {"end": 40}]}, "the span 0 to 40 is not in the text of 34"),
        ({"id": "a", "text": TEXT, "mentions": [NAME | {"end": 0}]}, "the span 0 to 0 is not in the text"),
        (
            {"id": "a", "text": TEXT, "mentions": [NAME | {"surface": "Gorgia"}]},
            "0 to 7 is 'Georgia', its surface 'Gor",
        ),
        ({"id": "a", "text": TEXT, "mentions": [NAME | {"kind": "verb"}]}, "has kind 'verb', it must be name or noun"),
        ({"id": "a", "text": TEXT, "mentions": [NAME | {"entity_ids": "Q1"}]}, "'Georgia' has entity_ids 'Q1'"),
        ({"id": "a", "text": TEXT, "mentions": [NAME | {"entity_ids": [""]}]}, "'Georgia' has entity_ids"),
        (
            {"id": "a", "text": TEXT, "mentions": [NAME, NAME | {"start": 6, "end": 13, "surface": "a beach"}]},
            "the mentions 'Georgia' and 'a beach' overlap; keep the longer one",
        ),
    ],
)
def test_a_line_that_is_not_as_it_must_be_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "gold.jsonl", row)
    with pytest.raises(UserError) as error:
        read_gold(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_an_empty_file_a_missing_one_and_a_repeated_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 texts, at least 1 is needed"):
        read_gold(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match=r"none.jsonl cannot be read"):
        read_gold(tmp_path / "none.jsonl")
    row = {"id": "a", "text": TEXT, "mentions": []}
    with pytest.raises(UserError, match="duplicate id 'a'"):
        read_gold(write(tmp_path / "twice.jsonl", row, row))
