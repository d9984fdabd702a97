"""Units: what identifies their rows, and rows that a file no longer has."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from pipeline.config import MembersConfig
from pipeline.schema import ImageText, Rejection, UserError
from pipeline.sources import ShardPart, member_rules
from pipeline.sources.read import split_shard
from pipeline.units import GivenUp, Part, PicturePlace, Unit, read_pictures, read_unit, unit_of_json, unit_to_json
from tests.fakes import pair, png, write_tar


def unit_of(path: Path, rows: ShardPart) -> Unit:
    return Unit(name="u", parts=(Part(path=str(path), file=path.name, fingerprint="f", rows=rows),))


def test_one_failed_row_stands_for_those_that_a_file_does_not_have_any_more(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*pair("x", "E1", 1), *pair("y", "E2", 2)])
    whole = list(read_unit(unit_of(tmp_path / "a.tar", ShardPart(end_row=2))))
    assert [(item.image_id, item.row) for item in whole] == [("x", 0), ("y", 1)]
    *rows, rest = read_unit(unit_of(tmp_path / "a.tar", ShardPart(end_row=5)))
    assert rows == whole
    assert isinstance(rest, Rejection) and rest.retryable
    assert (rest.image_id, rest.row, rest.stage, rest.reason) == ("a.tar:2", 2, "read", "missing_rows")
    assert rest.shard == str(tmp_path / "a.tar")
    # A damaged file says so itself, and once.
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1500])
    damaged = list(read_unit(unit_of(tmp_path / "b.tar", ShardPart(end_row=5))))
    assert [item.retryable for item in damaged if isinstance(item, Rejection)] == [True]


def test_a_unit_has_the_rows_of_its_part_only_and_of_a_file_without_rows_the_failed_one(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "a.tar", [*pair("x", "E1", 1), *pair("y", "E2", 2)])
    second = split_shard(str(tmp_path / "a.tar"), max_rows=1, max_bytes=1 << 20)[1]
    assert [(item.image_id, item.row) for item in read_unit(unit_of(tmp_path / "a.tar", second))] == [("y", 1)]
    # What is given up is counted from the first row of the unit.
    for given_up, image_id in ((GivenUp(rows={0: "timeout"}), "y"), (GivenUp(rests={0: "timeout"}), "a.tar:1")):
        (item,) = read_unit(unit_of(tmp_path / "a.tar", second), given_up=given_up)
        assert isinstance(item, Rejection) and (item.image_id, item.row, item.reason) == (image_id, 1, "timeout")
    write_tar(tmp_path / "empty.tar", [])
    (rest,) = read_unit(unit_of(tmp_path / "empty.tar", ShardPart(end_row=2)))
    assert isinstance(rest, Rejection) and (rest.image_id, rest.reason) == ("empty.tar:0", "missing_rows")


def test_a_unit_is_read_with_the_members_that_are_asked_for(tmp_path: Path) -> None:
    (image, _) = pair("x", "E1", 1)
    write_tar(tmp_path / "a.tar", [image, ("x.alt", b"E2")])
    unit = unit_of(tmp_path / "a.tar", ShardPart())
    (row,) = read_unit(unit, MembersConfig(text_member="alt"))
    assert isinstance(row, ImageText) and row.text == "E2"


def test_a_row_that_is_given_up_is_not_looked_into_and_the_rest_of_a_file_is_one_row(tmp_path: Path) -> None:
    for name in "ab":
        rows = [pair(f"{name}{row}", "E1", row) for row in range(4)]
        write_tar(tmp_path / f"{name}.tar", [member for row in rows for member in row])
    first = Part(path=str(tmp_path / "a.tar"), file="a.tar", fingerprint="f", rows=ShardPart(first_row=0, end_row=4))
    second = dataclasses.replace(first, path=str(tmp_path / "b.tar"), file="b.tar")
    unit = Unit(name="u", parts=(first, second))

    def ends(given_up: GivenUp) -> list[tuple[str, int, str]]:
        items = list(read_unit(unit, given_up=given_up))
        assert all(item.retryable and item.stage == "read" for item in items if isinstance(item, Rejection))
        return [(item.image_id, item.row, item.reason if isinstance(item, Rejection) else "") for item in items]

    good = [(f"{name}{row}", row, "") for name in "ab" for row in range(4)]
    assert ends(GivenUp()) == good
    # Position 5 is the second row of the second file.
    assert ends(GivenUp(rows={5: "timeout"})) == [*good[:5], ("b1", 1, "timeout"), *good[6:]]
    # The rest of the first file from its third row on, so that the second one begins at position 3.
    rest = [*good[:2], ("a.tar:2", 2, "killed_worker"), *good[4:]]
    assert ends(GivenUp(rests={2: "killed_worker"})) == rest
    both = GivenUp(rows={3: "timeout"}, rests={2: "killed_worker", 4: "timeout"})
    assert ends(both) == [*rest[:3], ("b0", 0, "timeout"), ("b.tar:1", 1, "timeout")]
    # A row that is given up does not hide that others are missing.
    missing = dataclasses.replace(first, rows=ShardPart(first_row=0, end_row=9))
    items = list(read_unit(Unit(name="u", parts=(missing,)), given_up=GivenUp(rows={3: "timeout"})))
    assert [item.reason for item in items[3:] if isinstance(item, Rejection)] == ["timeout", "missing_rows"]


def test_a_row_that_is_not_looked_into_is_not_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", [*pair("x", "E1", 1), *pair("y", "E2", 2)])
    cleaned = []
    monkeypatch.setattr(member_rules, "clean_text", lambda text: cleaned.append(text) or text)
    unit = unit_of(tmp_path / "a.tar", ShardPart())
    list(read_unit(unit, given_up=GivenUp(rows={0: "timeout"})))
    assert cleaned == ["E2"]
    # Nor is one whose picture is not asked for, since the row may be one that killed its worker.
    (picture,) = read_pictures(unit, [PicturePlace("a.tar", 1, None, 0)])
    assert cleaned == ["E2", "E2"] and picture == png(2)


def test_units_of_other_rows_names_or_contents_have_other_fingerprints_and_folders_do_not_count(tmp_path: Path) -> None:
    unit = unit_of(tmp_path / "a.tar", ShardPart(2, 4, 1024, 4096))
    (part,) = unit.parts
    others = [
        dataclasses.replace(part, file="b.tar"),
        dataclasses.replace(part, fingerprint="g"),
        dataclasses.replace(part, rows=ShardPart(3, 4, 1024, 4096)),
        dataclasses.replace(part, rows=ShardPart(2, 5, 1024, 4096)),
    ]
    fingerprints = {unit.fingerprint, *(dataclasses.replace(unit, parts=(other,)).fingerprint for other in others)}
    assert len(fingerprints) == 5
    moved = dataclasses.replace(unit, parts=(dataclasses.replace(part, path="elsewhere/a.tar"),))
    assert moved.fingerprint == unit.fingerprint


def test_a_unit_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    unit = unit_of(tmp_path / "a.tar", ShardPart(2, 4, 1024, 4096))
    assert unit_of_json(json.loads(json.dumps(unit_to_json(unit)))) == unit


def places(unit: Unit) -> list[PicturePlace]:
    names = {part.path: part.file for part in unit.parts}
    return [
        PicturePlace(names[row.shard], row.row, row.image_start_byte, len(row.image))
        for row in read_unit(unit)
        if isinstance(row, ImageText)
    ]


def test_pictures_are_read_where_annotating_found_them_and_by_their_rows_where_they_lie_compressed(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "a.tar", [*pair("x", "E1", 1), ("y.txt", b"alone"), *pair("z", "E2", 2)])
    write_tar(tmp_path / "b.tar", [member for number in range(3, 6) for member in pair(f"x{number}", "E1", number)])
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    parts = [Part(path=str(tmp_path / name), file=name, fingerprint="f") for name in ("a.tar", "b.tar.gz", "b.tar")]
    unit = Unit(name="u", parts=tuple(parts))
    found = places(unit)
    assert [one.start_byte is None for one in found] == [False] * 2 + [True] * 3 + [False] * 3
    numbers = [1, 2, 3, 4, 5, 3, 4, 5]
    assert list(read_pictures(unit, found)) == [png(number) for number in numbers]
    chosen = [1, 2, 4, 6]  # of each file some
    assert list(read_pictures(unit, [found[one] for one in chosen])) == [png(numbers[one]) for one in chosen]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_picture_that_is_gone_has_no_bytes_and_a_file_that_is_gone_is_an_error(
    tmp_path: Path, is_known: bool
) -> None:
    write_tar(tmp_path / "a.tar", [*pair("x", "E1", 1), *pair("y", "E2", 2)])
    unit = unit_of(tmp_path / "a.tar", ShardPart())
    found = [one._replace(start_byte=one.start_byte if is_known else None) for one in places(unit)]
    write_tar(tmp_path / "a.tar", pair("x", "E1", 1))
    assert list(read_pictures(unit, found)) == [png(1), bytes(len(png(2))) if is_known else b""]
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:550])
    first, second = read_pictures(unit, found)
    assert first != png(1) and second == b""
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"a\.tar cannot be read .*No such file"):
        list(read_pictures(unit, found))


def test_a_picture_without_a_known_place_is_read_in_its_part_alone_and_by_the_rules_of_its_row(tmp_path: Path) -> None:
    members = [("seen.png", png(1)), ("asked.png", png(2)), ("txt", b"E1")]
    write_tar(tmp_path / "a.tar", [(f"{key}.{suffix}", content) for key in "xy" for suffix, content in members])
    second = split_shard(str(tmp_path / "a.tar"), max_rows=1, max_bytes=1 << 20)[1]
    tar = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(b"?" * 512 + tar[512:])  # whoever reads from the start meets a damaged header
    unit, place = unit_of(tmp_path / "a.tar", second), PicturePlace("a.tar", 1, None, 0)
    assert list(read_pictures(unit, [place], MembersConfig(image_member="asked.png"))) == [png(2)]
    assert list(read_pictures(unit, [place])) == [b""]  # which of the two is not said
