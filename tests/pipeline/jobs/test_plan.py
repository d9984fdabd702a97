"""Input files -> units: which files are together, and what a later run reads again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from pipeline.config import UnitConfig
from pipeline.jobs import plan as plan_job
from pipeline.jobs.plan import plan
from pipeline.runners import RunnerConfig
from pipeline.sources.inputs import list_inputs
from pipeline.units import Unit

# 10 rows of 2,048 bytes at least: files of together 20,480 bytes are put into a unit.
TEN_ROWS = UnitConfig(unit_rows=10)


def write_files(folder: Path, sizes: dict[str, int]) -> None:
    for name, size_bytes in sizes.items():
        (folder / f"{name}.tar").write_bytes(name.encode()[:1] * size_bytes)


def planned(folder: Path, *, output: str = "out", config: UnitConfig = TEN_ROWS) -> tuple[Unit, ...]:
    shards = list_inputs(str(folder / "*.tar"))
    return plan(shards, str(folder / output), config=config, runner=RunnerConfig())


def files_of(units: tuple[Unit, ...]) -> dict[str, list[str]]:
    return {unit.name: [part.file for part in unit.parts] for unit in units}


def test_small_files_that_follow_each_other_are_a_unit_up_to_its_limit(tmp_path: Path) -> None:
    # 8,000 + 8,000 = 16,000, and the next 8,000 would be 24,000 of 20,480.
    write_files(tmp_path, {"a": 8000, "b": 8000, "c": 8000, "d": 12480, "e": 1})
    assert files_of(planned(tmp_path)) == {"a": ["a.tar", "b.tar"], "c": ["c.tar", "d.tar"], "e": ["e.tar"]}
    assert files_of(planned(tmp_path, output="single", config=UnitConfig(unit_rows=0))) == {
        name: [f"{name}.tar"] for name in "abcde"
    }


def test_one_more_input_makes_a_further_unit_and_moves_none(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": 8000, "c": 8000})
    before = planned(tmp_path)
    write_files(tmp_path, {"b": 10, "d": 10})
    assert files_of(planned(tmp_path)) == {"a": ["a.tar", "c.tar"], "b": ["b.tar"], "d": ["d.tar"]}
    assert {unit.name: unit.fingerprint for unit in planned(tmp_path)}["a"] == before[0].fingerprint


def test_only_new_and_changed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a": 8, "b": 8, "c": 8})
    read = []
    with_fingerprint = plan_job.with_fingerprint
    monkeypatch.setattr(plan_job, "with_fingerprint", lambda shard: read.append(shard.name) or with_fingerprint(shard))
    first = planned(tmp_path)
    assert sorted(read) == ["a", "b", "c"]
    assert planned(tmp_path) == first and len(read) == 3
    os.utime(tmp_path / "b.tar", (1, 1))
    assert planned(tmp_path) == first and read[3:] == ["b"]
    write_files(tmp_path, {"c": 9})
    changed = planned(tmp_path)
    assert files_of(changed) == files_of(first) and changed != first and read[4:] == ["c"]


def test_the_records_are_one_file_and_one_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    write_files(tmp_path, {name: 8 for name in "abcdefghijkl"})
    first = planned(tmp_path)
    (records,) = (tmp_path / "out" / "units" / "inputs").iterdir()
    records.write_bytes(records.read_bytes()[:-9])
    assert planned(tmp_path) == first
    (records,) = (tmp_path / "out" / "units" / "inputs").iterdir()
    (records.parent / ("0" * 32 + ".json")).write_bytes(records.read_bytes())  # under a name of another content
    assert planned(tmp_path) == first
    assert len(list(records.parent.iterdir())) == 1


def test_names_of_units_have_no_slash_and_fit_into_file_names(tmp_path: Path) -> None:
    (shard,) = list_inputs(str(_touch(tmp_path / "a.tar")))
    long = "x" * 150
    names = [
        unit.name
        for name in ("part0/00000", long + "1", long + "2")
        for unit in plan(
            [dataclasses.replace(shard, name=name)],
            str(tmp_path / "out"),
            config=UnitConfig(unit_rows=0),
            runner=RunnerConfig(),
        )
    ]
    assert names[0] == "part0--00000"
    assert names[1] != names[2] and all(name.startswith("x" * 60) and len(name) == 76 for name in names[1:])


def _touch(path: Path) -> Path:
    path.touch()
    return path
