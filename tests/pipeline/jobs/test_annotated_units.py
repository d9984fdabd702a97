"""Which units are finished, which are retried, how pending ones are listed, and what is cleared behind them."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from pipeline.jobs import annotate as job
from pipeline.storage.unit_commits import UnitCommit, read_commits, write_commit
from pipeline.units import AnnotatedUnit, Part, Unit


def unit_of(name: str, *, num_parts: int = 1) -> Unit:
    part = Part(path=f"in/{name}.tar", file=f"{name}.tar", fingerprint="f")
    return Unit(name=name, parts=(part,) * num_parts)


def commit_of(unit: str, *, key: str = "new", sha256: str = "5", num_rows: int = 3) -> UnitCommit:
    return UnitCommit(unit=unit, key=key, sha256=sha256, size_bytes=4, num_rows=num_rows)


def write(output: Path, *commits: UnitCommit, **outcomes: int) -> None:
    """Writes annotations of four bytes and their commits."""
    for commit in commits:
        path = output / "annotations" / f"{commit.unit}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
        write_commit(str(output), commit, {name.replace("_", "/"): number for name, number in outcomes.items()})


def finished(output: Path, name: str, *, sha256: str = "5") -> AnnotatedUnit:
    path = f"{output}/annotations/{name}.parquet"
    return AnnotatedUnit(unit=unit_of(name), path=path, num_rows=3, key="new" + sha256, sha256=sha256)


def test_a_unit_is_finished_by_one_commit_of_its_key_and_other_commits_are_deleted(tmp_path: Path) -> None:
    current, stale, older, both, twice = "current", "stale", "older", "both", "twice"
    kept = [commit_of(current), commit_of(both), commit_of("elsewhere", key="old")]
    write(tmp_path, *kept, *(commit_of(name, key="old") for name in (stale, older, both)), annotated=3)
    # Two attempts that did not write the same bytes: which of them are there is not known.
    write(tmp_path, commit_of(twice, sha256="6"), commit_of(twice, sha256="7"), annotated=3)
    units = [unit_of(name) for name in (older, both, "none", twice, stale, current)]
    found, num_stale = job._finished_units(units, {unit.name: "new" for unit in units}, str(tmp_path))
    assert found == {name: finished(tmp_path, name) for name in (both, current)}
    assert num_stale == 2  # those that have others only
    left = [commit for of_unit in read_commits(str(tmp_path)).values() for commit in of_unit]
    assert sorted(left, key=lambda one: one.unit) == sorted(kept, key=lambda one: one.unit)


def test_units_are_retried_that_have_failed_rows_or_a_commit_that_was_cut_short(tmp_path: Path) -> None:
    names = ("whole", "failed", "cut", "other")
    write(tmp_path, commit_of("whole"), annotated=2, dropped_read_missing=1)
    write(tmp_path, commit_of("failed"), annotated=2, failed_read_timeout=1)
    write(tmp_path, commit_of("cut"))
    (tmp_path / "units" / "commits" / commit_of("cut").file).write_bytes(b'{"annot')
    # Of other bytes, and of a unit that is not asked for.
    write(tmp_path, commit_of("other", sha256="6"), commit_of("stranger"), failed_read_timeout=3)
    retried = job._units_with_failed_rows({name: finished(tmp_path, name) for name in names}, str(tmp_path))
    assert retried == {name: commit_of(name) for name in ("failed", "cut")}


def test_pending_units_are_listed_by_parts_and_named_by_a_list_and_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_PARTS_PER_LIST", 4)
    units = [unit_of(f"unit-{number}", num_parts=parts) for number, parts in enumerate((1, 2, 1, 5, 1))]
    lists = job._write_pending(units, str(tmp_path), "run")
    # 1 + 2 + 1 parts, then five, which are more than a list should have, then one.
    assert lists == [(f"{tmp_path}/run-{number:06d}.json", length) for number, length in enumerate((3, 1, 1))]
    assert [job._read_list(path) for path, _ in lists] == [tuple(units[:3]), tuple(units[3:4]), tuple(units[4:])]
    counted: list[tuple[str, str, int]] = []
    counter = namedtuple("counter", "stage, name")
    counter.inc = lambda self, number: counted.append((*self, number))  # type: ignore[attr-defined]
    monkeypatch.setattr(job.Metrics, "counter", counter)
    assert list(job._names_of_list(lists[0])) == [(lists[0][0], number) for number in range(3)]
    assert counted == [("annotate", "units", 3)]
    assert job._write_pending([], str(tmp_path), "run") == []


def test_notes_of_finished_units_and_lists_of_pending_ones_are_deleted(tmp_path: Path) -> None:
    notes, pending = tmp_path / "units" / "notes", tmp_path / "units" / "pending"
    for folder in (notes, pending):
        folder.mkdir(parents=True)
    for path in (notes / "a.tar.k1.json", notes / "b.tar.k1.json", pending / "run-000000.json"):
        path.touch()
    job._delete_notes({"a.tar": finished(tmp_path, "a.tar"), "b": finished(tmp_path, "b")}, str(tmp_path))
    assert [path.name for path in notes.iterdir()] == ["b.tar.k1.json"] and not list(pending.iterdir())
