"""Which members are a row's picture, text and further fields."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import MembersConfig, check_members_config
from pipeline.schema import ImageText, Rejection, UserError
from pipeline.sources.member_rules import Found, MemberRules, Unread
from pipeline.sources.read import read_shard
from tests.fakes import png, write_tar

IMAGE = png(1)
URL = "https://example.org/a.jpg"


def read_row(path: Path, members: dict[str, bytes], **config: Any) -> ImageText | Rejection:
    """Returns the one row whose members have these suffixes."""
    write_tar(path / "s.tar", [(f"a.{suffix}", content) for suffix, content in members.items()])
    (row,) = read_shard(str(path / "s.tar"), config=MembersConfig(**config))
    return row


def end_of(path: Path, members: dict[str, bytes], **config: Any) -> str:
    """Returns the text of the row, which has the picture `IMAGE`, or the reason why it is not used."""
    row = read_row(path, members, **config)
    if isinstance(row, Rejection):
        return row.reason
    assert row.image == IMAGE
    return row.text


@pytest.mark.parametrize(
    "suffix",
    [
        "png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "avif", "JPG", "jpg.1", "jpg.12",
        "input.jpg", "v2.png",
    ],
)  # fmt: skip
def test_what_counts_as_a_picture(tmp_path: Path, suffix: str) -> None:
    assert end_of(tmp_path, {suffix: IMAGE, "txt": b"text"}) == "text"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"input.jpg": IMAGE, "outputs.txt": b"two parts"}, "two parts"),
        ({"jpg": IMAGE, "seg.png": b"other", "txt": b"text"}, "text"),  # fewer dots
        ({"jpg": IMAGE, "jpg.1": b"other", "txt": b"text"}, "text"),
        ({"jpg": IMAGE, "png": b"other", "txt": b"text"}, "several_images"),
        ({"v1.jpg": IMAGE, "v2.jpg": b"other", "txt": b"text"}, "several_images"),
        ({"jpg": IMAGE, "en.txt": b"one", "de.txt": b"two"}, "several_texts"),
        ({"jpg": IMAGE, "en.txt": b"one", "txt": b"two"}, "two"),
        ({"jpg": IMAGE, "caption": b"caption"}, "caption"),
        ({"jpg": IMAGE, "caption": b"caption", "txt": b"text"}, "text"),
        ({"jpg": IMAGE, "json": b'{"caption": "in json"}', "text": b"text"}, "text"),
        ({"jpg": IMAGE, "cls": b"7"}, "missing_text"),
        ({"jpg": IMAGE}, "missing_text"),
        ({"txt": b"text"}, "missing_image"),
        ({"cls": b"7"}, "missing_image"),
        ({"svg": b"<svg>", "txt": b"text"}, "unsupported_image"),
        ({"mp4": b"video", "txt": b"text"}, "unsupported_image"),
        ({"heic": b"photo", "jpg": IMAGE, "txt": b"text"}, "text"),
        ({"jpg": IMAGE, "txt": b" \n"}, "empty_text"),
        ({"jpg": IMAGE, "txt": b"\xff\xfe"}, "undecodable_text"),
    ],
)
def test_which_member_is_taken_and_the_reason_if_none_is(
    tmp_path: Path, members: dict[str, bytes], expected: str
) -> None:
    assert end_of(tmp_path, members) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"caption": "of img2dataset", "url": URL}, "of img2dataset"),
        ({"TEXT": "of LAION", "URL": URL}, "of LAION"),
        ({"caption": None, "alt_text": "alt &amp; text"}, "alt & text"),  # cleaned
        ({"caption": "", "TEXT": "second"}, "empty_text"),  # the first that is a string counts
        ({"url": URL}, "missing_text_field"),
        ({"caption": ["a", "list"]}, "missing_text_field"),
        ([1], "undecodable_json"),
        ("no object", "undecodable_json"),
    ],
)
def test_a_text_is_looked_for_in_the_json(tmp_path: Path, content: object, expected: str) -> None:
    assert end_of(tmp_path, {"jpg": IMAGE, "json": json.dumps(content).encode()}) == expected


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_json_that_cannot_be_parsed_is_a_reason(tmp_path: Path, content: bytes) -> None:
    assert end_of(tmp_path, {"jpg": IMAGE, "json": content}) == "undecodable_json"


def test_json_with_nan_and_lone_surrogates_is_parsed(tmp_path: Path) -> None:
    content = b'{"similarity": NaN, "caption": "a \\ud83d b"}'
    assert end_of(tmp_path, {"jpg": IMAGE, "json": content}) == "a \ufffd b"


def test_members_and_fields_can_be_named(tmp_path: Path) -> None:
    members = {
        "input.jpg": b"input",
        "output.jpg": IMAGE,
        "en.txt": b"English",
        "de.txt": b"Deutsch",
        "json": b'{"caption": "caption", "title": "title"}',
    }
    named = {"image_member": "output.jpg"}
    assert end_of(tmp_path, members, **named, text_member="de.txt") == "Deutsch"
    assert end_of(tmp_path, members, **named, text_member=" .fr.txt, .EN.txt") == "English"
    assert end_of(tmp_path, members, **named, text_member="json,txt") == "caption"
    assert end_of(tmp_path, members, **named, text_member="json", text_field="alt,title") == "title"
    assert end_of(tmp_path, members, image_member="png", text_member="de.txt") == "missing_image"
    assert end_of(tmp_path, {"dat": IMAGE, "lbl": b"odd"}, image_member="dat", text_member="lbl") == "odd"


def test_the_first_format_that_is_named_counts(tmp_path: Path) -> None:
    members = {"png": b"other", "jpg": IMAGE, "txt": b"text"}
    assert end_of(tmp_path, members, image_member="jpg,png") == "text"


def test_fields_pass_through_kept_or_not(tmp_path: Path) -> None:
    fields = {"url": URL, "original_width": 640, "nsfw": False, "exif": {"b": 1, "a": "é"}, "license": None}
    config = {"keep_fields": "url, original_width,nsfw,exif,license,absent"}
    members = {"jpg": IMAGE, "txt": b"text", "json": json.dumps(fields).encode()}
    expected = (
        ("url", URL),
        ("original_width", "640"),
        ("nsfw", "false"),
        ("exif", '{"a": "é", "b": 1}'),
        ("license", None),
        ("absent", None),
    )
    for one in (members, {**members, "txt": b""}, {**members, "txt": b"\xff"}, {"json": members["json"]}):
        assert read_row(tmp_path, one, **config).fields == expected
    assert read_row(tmp_path, {"jpg": IMAGE, "txt": b"text"}, **config).fields == tuple((n, None) for n, _ in expected)
    assert read_row(tmp_path, members).fields == ()


def test_json_is_parsed_only_where_it_is_needed(tmp_path: Path) -> None:
    members = {"jpg": IMAGE, "txt": b"text", "json": b"{"}
    assert end_of(tmp_path, members) == "text"
    assert end_of(tmp_path, members, keep_fields="url") == "undecodable_json"


def test_fields_that_come_after_other_rows_are_waited_for(tmp_path: Path) -> None:
    members = [(f"{key}.{suffix}", content) for suffix, content in (("jpg", IMAGE), ("txt", b"text")) for key in "ab"]
    members += [(f"{key}.json", json.dumps({"url": key}).encode()) for key in "ab"]
    write_tar(tmp_path / "s.tar", members)
    rows = list(read_shard(str(tmp_path / "s.tar"), config=MembersConfig(keep_fields="url")))
    assert [row.fields for row in rows] == [(("url", "a"),), (("url", "b"),)]


def test_long_texts_are_dropped_and_only_their_beginning_is_kept(tmp_path: Path) -> None:
    assert end_of(tmp_path, {"jpg": IMAGE, "txt": b"x" * 10_000}) == "x" * 10_000
    row = read_row(tmp_path, {"jpg": IMAGE, "txt": b"x" * 10_001})
    assert isinstance(row, Rejection) and (row.reason, row.text) == ("text_too_long", "x" * 10_000)
    assert end_of(tmp_path, {"jpg": IMAGE, "txt": b"word " * 200_000}) == "text_too_long"
    assert end_of(tmp_path, {"jpg": IMAGE, "txt": b"12345"}, max_text_chars=4) == "text_too_long"


def test_files_larger_than_any_picture_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.webdataset._MEMBER_BYTES_MAX", len(IMAGE) - 1)
    assert end_of(tmp_path, {"jpg": IMAGE, "txt": b"text"}) == "file_too_large"


def test_lists_that_name_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="--text-member is empty; give at least one, separated by commas"):
        check_members_config(MembersConfig(text_member=" , "))
    with pytest.raises(UserError, match="--text-field is empty"):
        check_members_config(MembersConfig(text_field=""))
    with pytest.raises(UserError, match="--max-text-chars is 0; the least allowed is 1"):
        check_members_config(MembersConfig(max_text_chars=0))
    check_members_config(MembersConfig())


def test_a_row_is_whole_with_all_that_it_needs_and_what_is_not_used_keeps_what_there_is() -> None:
    plain = MemberRules(MembersConfig(max_text_chars=4))
    with_fields = MemberRules(MembersConfig(text_member="txt", keep_fields="url", max_text_chars=4))
    assert plain.is_whole(["jpg", "txt"]) and with_fields.is_whole(["jpg", "txt", "json"])
    assert not plain.is_whole(["jpg"]) and not plain.is_whole(["txt"]) and not with_fields.is_whole(["jpg", "txt"])
    fields = {"json": json.dumps({"url": URL}).encode()}
    kept = (("url", URL),)
    assert with_fields.find({"jpg": IMAGE, "txt": b"12345", **fields}) == Found(
        reason="text_too_long", text="1234", fields=kept
    )
    assert with_fields.find({"txt": b"text", **fields}) == Found(reason="missing_image", text="text", fields=kept)
    assert with_fields.find({"jpg": Unread("unresolved_link"), **fields}) == Found(
        reason="unresolved_link", fields=kept
    )
    assert with_fields.find({"v1.jpg": IMAGE, "v2.jpg": IMAGE, "txt": b"text"}) == Found(
        reason="several_images", text="text", fields=(("url", None),)
    )
    assert with_fields.find({"v1.jpg": IMAGE, "txt": b"text", **fields}) == Found(
        image=IMAGE, text="text", fields=kept, image_suffix="v1.jpg"
    )
    assert with_fields.find({"jpg": IMAGE, "txt": b"text", "json": Unread("file_too_large")}) == Found(
        reason="file_too_large"
    )


def test_members_are_read_that_a_row_may_need() -> None:
    rules = MemberRules(MembersConfig())
    assert rules.is_read("jpg") and not rules.is_read("cls")
    assert not rules.is_read("json.gz") and MemberRules(MembersConfig(text_member="txt")).is_read("json") is False


@pytest.mark.parametrize("num_letters", [6, 5000])
def test_what_is_known_of_suffixes_takes_about_a_megabyte_however_many_there_are(num_letters: int) -> None:
    rules = MemberRules(MembersConfig())
    held_bytes = 0
    tracemalloc.start()
    try:
        for number in range(5_000):
            suffix = f"{number:0{num_letters}}.jpg"
            assert rules.is_read(suffix) and rules.find({suffix: IMAGE, "txt": b"text"}).image is IMAGE
            if number % 100 == 0:
                held_bytes = max(held_bytes, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # One megabyte for single suffixes and one for those of rows, of which an entry takes less than is counted for it;
    # if the letters were not counted, 10 MB in the second case.
    assert 0.5 < held_bytes / 2**20 < 1.5
