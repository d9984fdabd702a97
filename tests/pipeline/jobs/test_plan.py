"""Input files -> units: which files are together, and what a later run reads again."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.config import UnitConfig
from pipeline.jobs import plan as plan_job
from pipeline.jobs.plan import plan
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import UserError
from pipeline.sources import WHOLE_SHARD, ShardPart
from pipeline.sources.inputs import InputShard, list_inputs
from pipeline.storage.input_scans import read_scans, write_scans
from pipeline.units import Unit
from tests.fakes import pair, write_tar

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
    write_files(tmp_path, {"c": 0, "d": 0})
    for limits in (UnitConfig(unit_rows=0), UnitConfig(unit_rows=0, unit_bytes=0)):
        single = planned(tmp_path, output="single", config=limits)
        assert files_of(single) == {name: [f"{name}.tar"] for name in "abcde"}


def test_a_file_is_split_at_the_limit_of_rows_or_bytes(tmp_path: Path) -> None:
    # A row is 2,048 bytes: header, picture, header, text; the tar has 20,480, since tars end in zeros.
    write_tar(tmp_path / "a.tar", [member for key in "vwxyz" for member in pair(key, "E1", 1)])
    (tmp_path / "b.tar").touch()
    units = planned(tmp_path, config=UnitConfig(unit_rows=2))
    assert {unit.name: [part.rows for part in unit.parts] for unit in units} == {
        "a@000000000": [ShardPart(0, 2, 0, 4096)],
        "a@000000002": [ShardPart(2, 4, 4096, 8192)],
        "a@000000004": [ShardPart(4, None, 8192, None)],
        "b": [WHOLE_SHARD],
    }
    assert {part.path for unit in units[:3] for part in unit.parts} == {str(tmp_path / "a.tar")}
    # 6,000 bytes are reached by the third row.
    by_bytes = planned(tmp_path, config=UnitConfig(unit_rows=100, unit_bytes=6000))
    assert [unit.name for unit in by_bytes] == ["a@000000000", "a@000000003", "b"]
    assert [unit.name for unit in planned(tmp_path, config=UnitConfig(unit_rows=0, unit_bytes=6000))] == ["a", "b"]


def test_a_file_that_outgrew_its_unit_is_split_and_leaves_it(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": 8, "b": 8})
    assert files_of(planned(tmp_path, config=UnitConfig(unit_rows=4))) == {"a": ["a.tar", "b.tar"]}
    write_tar(tmp_path / "b.tar", [member for key in "vwxyz" for member in pair(key, "E1", 1)])
    assert files_of(planned(tmp_path, config=UnitConfig(unit_rows=4))) == {
        "a": ["a.tar"],
        "b@000000000": ["b.tar"],
        "b@000000004": ["b.tar"],
    }


def test_only_files_larger_than_a_unit_are_looked_into_and_one_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *, max_rows: int, max_bytes: int) -> tuple[ShardPart, ...]:
        raise PermissionError("not\nallowed")

    monkeypatch.setattr(plan_job, "split_shard", refuse)
    write_files(tmp_path, {"a": 20480})
    assert files_of(planned(tmp_path)) == {"a": ["a.tar"]}
    write_files(tmp_path, {"b": 20481})
    with pytest.raises(UserError) as refused:
        planned(tmp_path)
    assert str(refused.value) == (
        f"--input {tmp_path}/b.tar cannot be read (not allowed); repair or remove it, and run again"
    )


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


def test_a_run_with_nothing_new_leaves_the_file_of_records_alone_and_makes_two_of_them_one(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, {"a": 8, "b": 8})
    first = planned(tmp_path)
    (records,) = (tmp_path / "out" / "units" / "inputs").iterdir()
    os.utime(records, (1, 1))
    assert planned(tmp_path) == first and records.stat().st_mtime == 1
    # What a kill leaves behind: records that no unit was written into yet.
    scans = [dataclasses.replace(scan, unit="") for (scan,) in read_scans(str(tmp_path / "out"))[0].values()]
    write_scans(str(tmp_path / "out"), scans[1:])
    assert planned(tmp_path) == first and files_of(first) == {"a": ["a.tar", "b.tar"]}
    assert list(records.parent.iterdir()) == [records]


def test_new_files_are_scanned_in_a_few_lists_by_as_many_threads_as_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, pools, printed = [], [], io.BytesIO()
    scan_files = plan_job.scan_files

    def scan(files: Sequence[tuple[InputShard, str]], *, output: str, limits: tuple[int, int]) -> None:
        lists.append([(shard.name, unit) for shard, unit in files])
        scan_files(files, output=output, limits=limits)

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, num_threads: int | None) -> None:
            pools.append(num_threads)
            super().__init__(num_threads)

    monkeypatch.setattr(plan_job, "scan_files", scan)
    monkeypatch.setattr(plan_job, "pipeline_options", None)  # no job is made
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    write_files(tmp_path, {name: 8 for name in "abcdefghi"})
    planned(tmp_path)
    # Four lists a thread, so of 9 files 2 each: 9 / (2 x 4), rounded up.
    assert sorted(lists) == [[(name, "") for name in names] for names in ("ab", "cd", "ef", "gh", "i")]
    assert printed.getvalue() == b"plan: 9 files, 9 of them new\n"  # at once, also through a pipe
    lists.clear()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    write_files(tmp_path, {"b": 9, "j": 8})
    planned(tmp_path)
    assert sorted(lists) == [[("b", "a")], [("j", "")]]  # b stays in its unit
    assert printed.getvalue().endswith(b"\nplan: 10 files, 2 of them new\n")
    lists.clear()
    monkeypatch.setattr(plan_job, "_FILES_PER_SCAN", 2)
    planned(tmp_path, config=UnitConfig(unit_rows=5))  # for other units all are new: 10 / (1 x 4) would be 3 each
    assert sorted(lists) == [[(name, "") for name in names] for names in ("ab", "cd", "ef", "gh", "ij")]
    assert pools == [2, 1, 1]


def test_a_cluster_scans_new_files_in_a_job_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def options(runner: RunnerConfig, beam_args: tuple[str, ...]) -> PipelineOptions:
        made.append((runner, beam_args))
        return pipeline_options(RunnerConfig(workers=1))

    monkeypatch.setattr(plan_job, "pipeline_options", options)
    write_files(tmp_path, {"a": 8000, "b": 8000, "c": 8000})
    shards = list_inputs(str(tmp_path / "*.tar"))
    cluster = RunnerConfig(runner="flink")
    units = plan(shards, str(tmp_path / "out"), config=TEN_ROWS, runner=cluster, beam_args=("--x=1",))
    assert units == planned(tmp_path, output="here")
    assert made == [(cluster, ("--x=1",))]


def test_names_of_units_have_no_slash_and_fit_into_file_names(tmp_path: Path) -> None:
    (shard,) = list_inputs(str(_touch(tmp_path / "a.tar")))
    long = "x" * 150
    names = [
        unit.name
        for name in ("part0/00000", long + "1", long + "2", "y" * 120, "x" + 60 * "é")
        for unit in plan(
            [dataclasses.replace(shard, name=name)],
            str(tmp_path / "out"),
            config=UnitConfig(unit_rows=0),
            runner=RunnerConfig(),
        )
    ]
    assert names[0] == "part0--00000"
    assert names[3:] == ["y" * 120, "x" + 29 * "é" + hashlib.sha256(("x" + 60 * "é").encode()).hexdigest()[:16]]
    names = names[:3]
    assert names[1] != names[2] and all(name.startswith("x" * 60) and len(name) == 76 for name in names[1:])


def _touch(path: Path) -> Path:
    path.touch()
    return path
