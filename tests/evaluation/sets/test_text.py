"""Text files are read as the people who wrote them mean them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.sets.text import check_unique, match_ids, read_ids, read_json, read_json_lines, read_lines, read_text
from pipeline.schema import UserError

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # "café" in Unicode's forms NFC and NFD


@pytest.mark.parametrize(
    "data",
    [
        b"ant\nbee\n",
        b"ant\nbee",
        b"\xef\xbb\xbfant\r\nbee\r\n",
        b"ant \nbee\t\n\n  \n",
        "ant\nbee\n".encode("utf-16"),
    ],
    ids=["plain", "no last newline", "byte order mark and carriage returns", "blanks", "UTF-16"],
)
def test_marks_line_ends_and_blanks_at_the_end_are_not_part_of_a_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    assert read_lines(tmp_path / "x.txt", remedy="-") == ["ant", "bee"]


def test_only_a_newline_ends_a_line_and_blanks_inside_stay(tmp_path: Path) -> None:
    lines = ["a\u2028b", " c\x85d", "", "e f"]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    assert read_lines(tmp_path / "x.txt", remedy="-") == lines


def test_what_cannot_be_read_names_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x.txt cannot be read .No such file or directory.; do this"):
        read_text(tmp_path / "x.txt", remedy="do this")
    (tmp_path / "x.txt").write_bytes("na\u00efve".encode("latin-1"))
    with pytest.raises(UserError, match=r"x.txt is not UTF-8 \(byte 2: invalid continuation byte\); do this"):
        read_text(tmp_path / "x.txt", remedy="do this")


def test_json_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "x.json", remedy="-") == {"a": 1}
    assert list(read_json_lines(tmp_path / "x.json", remedy="-")) == [(1, {"a": 1})]
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="x.json is not valid JSON .*; do this"):
        read_json(tmp_path / "x.json", remedy="do this")


def test_a_line_that_is_not_a_json_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a"\n')
    with pytest.raises(UserError, match="x.jsonl, line 3 is not valid JSON .*; do this"):
        list(read_json_lines(tmp_path / "x.jsonl", remedy="do this"))
    (tmp_path / "x.jsonl").write_text("[1]")
    with pytest.raises(UserError, match="x.jsonl, line 1 is not a JSON object; do this"):
        list(read_json_lines(tmp_path / "x.jsonl", remedy="do this"))


def test_ids_are_unique_also_when_they_differ_in_the_spelling_of_an_accent_alone(tmp_path: Path) -> None:
    (tmp_path / "x.ids").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="x.ids has the duplicate id 'a'; ids must be unique"):
        read_ids(tmp_path / "x.ids")
    words = r"here has two ids that are equal after Unicode normalisation \(NFC\), 'caf\\xe9' and 'cafe\\u0301'; ids"
    with pytest.raises(UserError, match=words):
        check_unique([COMPOSED, DECOMPOSED], "here")
    check_unique([COMPOSED, "cafe"], "here")


def match(wanted: list[str], given: list[str]) -> list[int]:
    return match_ids(wanted, given, source="x.ids", wanted_by="set").tolist()


def test_ids_are_matched_as_written_or_else_in_composed_form() -> None:
    assert match(["a", "b"], ["b", "a"]) == [1, 0]
    assert match([COMPOSED, "a"], ["a", DECOMPOSED]) == [1, 0]
    assert match([DECOMPOSED, "a"], ["a", COMPOSED]) == [1, 0]


def test_ids_that_one_side_lacks_are_named() -> None:
    with pytest.raises(UserError, match="x.ids lacks 1 ids of set, 'b'; add them"):
        match(["a", "b"], ["a", "c"])
    with pytest.raises(UserError, match="x.ids has 1 ids that set does not, 'c'; leave them out"):
        match(["a"], ["a", "c"])
    with pytest.raises(UserError, match="x.ids lacks 4 ids of set, 'b', 'c', 'd' and others; add them"):
        match(list("abcde"), ["a"])


def test_a_match_in_composed_form_is_of_one_id_with_one_id() -> None:
    with pytest.raises(UserError, match="set has two ids that are equal after Unicode normalisation"):
        match([COMPOSED, DECOMPOSED, "b"], [COMPOSED, "a", "b"])


def test_a_key_that_json_has_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"names": {"cat": "a", "dog": "b", "cat": "c"}}')
    with pytest.raises(UserError, match="x.json has the duplicate key 'cat'; do this"):
        read_json(tmp_path / "x.json", remedy="do this")
