"""Units: what identifies their rows, and rows that a file no longer has."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pipeline.config import MembersConfig
from pipeline.schema import ImageText, Rejection
from pipeline.sources import ShardPart
from pipeline.sources.read import split_shard
from pipeline.units import Part, Unit, read_unit, unit_of_json, unit_to_json
from tests.fakes import pair, write_tar


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
    write_tar(tmp_path / "empty.tar", [])
    (rest,) = read_unit(unit_of(tmp_path / "empty.tar", ShardPart(end_row=2)))
    assert isinstance(rest, Rejection) and (rest.image_id, rest.reason) == ("empty.tar:0", "missing_rows")


def test_a_unit_is_read_with_the_members_that_are_asked_for(tmp_path: Path) -> None:
    (image, _) = pair("x", "E1", 1)
    write_tar(tmp_path / "a.tar", [image, ("x.alt", b"E2")])
    unit = unit_of(tmp_path / "a.tar", ShardPart())
    (row,) = read_unit(unit, MembersConfig(text_member="alt"))
    assert isinstance(row, ImageText) and row.text == "E2"


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
