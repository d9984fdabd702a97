"""One unit in this process: its records, its commit, its counters, and what of it is run again."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import Metrics

from pipeline.config import AnnotateConfig, MembersConfig, ReadConfig
from pipeline.engine import annotate_unit
from pipeline.engine.annotate_unit import UnitAnnotator, key_of
from pipeline.engine.attempts import Attempt, note_path
from pipeline.schema import Rejection, Row, UserError
from pipeline.storage.unit_commits import UnitCommit, read_commits, read_outcomes
from pipeline.units import Part, Unit
from tests.fakes import FakeLinker, pair, png, write_tar

FINGERPRINT = {"kb": "1"}


class Watched(FakeLinker):
    """Links, and notes the texts of each batch that comes to it.

    Args:
        becomes: text -> the text that is taken for it.
    """

    def __init__(self, **becomes: str):
        super().__init__()
        self.batches: list[list[str]] = []
        self._becomes = becomes

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        self.batches.append([row.pair.text for row in rows])
        texts = [self._becomes.get(row.pair.text, row.pair.text) for row in rows]
        return [
            self._link(dataclasses.replace(row, pair=dataclasses.replace(row.pair, text=text)))
            for row, text in zip(rows, texts, strict=True)
        ]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[tuple[str, str]]:
    """What was added to each counter of Beam."""
    numbers: collections.Counter[tuple[str, str]] = collections.Counter()

    class Counter:
        def __init__(self, *names: str):
            self._names = names

        def inc(self, number: int = 1) -> None:
            numbers[self._names] += number  # type: ignore[index]

    monkeypatch.setattr(Metrics, "counter", Counter)
    return numbers


def unit_of(folder: Path, **texts: Sequence[str]) -> Unit:
    """Returns a unit of a file for each of `texts`; a row without text has no text."""
    parts = []
    for name, of_rows in texts.items():
        members = [member for row, text in enumerate(of_rows) for member in pair(f"{name}{row}", text, 1)]
        write_tar(folder / f"{name}.tar", [member for member in members if member[1]])
        parts.append(Part(path=str(folder / f"{name}.tar"), file=f"in/{name}.tar", fingerprint=name))
    return Unit(name="u", parts=tuple(parts))


def annotator(output: Path, *stages: Any, **settings: Any) -> UnitAnnotator:
    settings = {"config": AnnotateConfig(), "run_id": "run", **settings}
    return UnitAnnotator(stages=stages, output=str(output), fingerprint=FINGERPRINT, **settings)


def records(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "annotations" / "u.parquet").to_pylist()


def ends(output: Path) -> list[tuple[Any, ...]]:
    return [(one["shard"], one["row"], one["outcome"], one["stage"], one["reason"]) for one in records(output)]


def test_a_unit_becomes_a_record_for_each_row_a_commit_and_numbers(
    tmp_path: Path, counted: collections.Counter[tuple[str, str]]
) -> None:
    unit = unit_of(tmp_path, a=["E1", "", "nothing"], b=["FAIL", "E2", "E3"])
    stage = Watched()
    commit = annotator(tmp_path, stage).annotate(unit)
    # The names of files are those of the inputs, wherever they lie.
    assert ends(tmp_path) == [
        ("in/a.tar", 0, "annotated", None, None),
        ("in/a.tar", 1, "dropped", "read", "missing_text"),
        ("in/a.tar", 2, "dropped", "find_mentions", "no_mention"),
        ("in/b.tar", 0, "failed", "find_mentions", "timeout"),
        ("in/b.tar", 1, "annotated", None, None),
        ("in/b.tar", 2, "annotated", None, None),
    ]
    content = (tmp_path / "annotations" / "u.parquet").read_bytes()
    key = hashlib.sha256(json.dumps([unit.fingerprint, FINGERPRINT]).encode()).hexdigest()[:16]
    sha256 = hashlib.sha256(content).hexdigest()[:16]
    assert key_of(unit, FINGERPRINT) == key
    assert commit == UnitCommit(unit="u", key=key, sha256=sha256, size_bytes=len(content), num_rows=6)
    assert read_commits(str(tmp_path)) == {"u": [commit]}
    assert read_outcomes(str(tmp_path), commit) == {
        "annotated": 3,
        "dropped/read/missing_text": 1,
        "dropped/find_mentions/no_mention": 1,
        "failed/find_mentions/timeout": 1,
    }
    assert not list((tmp_path / "units" / "notes").iterdir())
    assert counted == {
        ("read", "read"): 6,
        ("read", "kept"): 5,
        ("read", "rejected_missing_text"): 1,
        ("find_mentions", "kept"): 3,
        ("find_mentions", "rejected_no_mention"): 1,
        ("find_mentions", "rejected_timeout"): 1,
        ("annotate", "units_done"): 1,
    }
    assert stage.batches == [["E1", "nothing", "FAIL", "E2", "E3"]]


def test_the_key_depends_on_the_unit_and_on_the_fingerprint_in_any_order(tmp_path: Path) -> None:
    unit, other = unit_of(tmp_path, a=["E1"]), unit_of(tmp_path, b=["E1"])
    assert key_of(unit, {"kb": "1", "code": "2"}) == key_of(unit, {"code": "2", "kb": "1"})
    assert len({key_of(unit, {}), key_of(other, {}), key_of(unit, {"kb": "1"})}) == 3


def test_batches_have_as_many_rows_as_are_asked_for_or_fewer_with_large_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of(tmp_path, a=["E1", "E2", "E3"], b=["E4", "E5"])
    config = AnnotateConfig(read=ReadConfig(rows_per_batch=2))
    first, second, rejecting = Watched(), Watched(), Watched(E3="x", E4="y")
    annotator(tmp_path / "all", first, config=config).annotate(unit)
    assert first.batches == [["E1", "E2"], ["E3", "E4"], ["E5"]]
    # A stage gets what the one before it kept, and is not called for none.
    annotator(tmp_path / "some", rejecting, second, config=config).annotate(unit)
    assert second.batches == [["E1", "E2"], ["E5"]]
    # A batch ends with the picture that fills it.
    sized = Watched()
    monkeypatch.setattr(annotate_unit, "_BATCH_BYTES", len(png(1)) + 1)
    annotator(tmp_path / "large", sized, config=AnnotateConfig(read=ReadConfig(rows_per_batch=9))).annotate(unit)
    assert sized.batches == [["E1", "E2"], ["E3", "E4"], ["E5"]]
    # A row without a picture, here the first, takes none of its bytes.
    without = Watched()
    annotator(tmp_path / "without", without).annotate(unit_of(tmp_path, c=["", "E1", "E2"]))
    assert without.batches == [["E1", "E2"]]
    monkeypatch.setattr(annotate_unit, "_BATCH_BYTES", len(png(1)))
    exact = Watched()
    annotator(tmp_path / "exact", exact, config=config).annotate(unit)
    assert exact.batches == [[f"E{number}"] for number in range(1, 6)]
    contents = {(tmp_path / name / "annotations" / "u.parquet").read_bytes() for name in ("all", "large", "exact")}
    assert len(contents) == 1


def test_rows_that_earlier_attempts_gave_up_are_failed_and_what_an_attempt_is_told_comes_from_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: collections.Counter[tuple[str, str]]
) -> None:
    unit = unit_of(tmp_path, a=["E1", "E2", "E3", "E4"], b=["E5", "E6"])
    path = Path(note_path(str(tmp_path), "u", key_of(unit, FINGERPRINT)))
    path.parent.mkdir(parents=True)
    note: dict[str, Any] = {"working": None, "reason": "", "run": "", "is_read": True, "suspects": [], "deaths": {}}
    # Of the unit's rows the second was read, the third not, and of the second file the second row ends all.
    path.write_text(
        json.dumps(note | {"failed": {"1": "timeout"}, "unread": {"2": "killed_worker"}, "rests": {"5": "timeout"}})
    )
    told: list[dict[str, Any]] = []
    working: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []

    class Spied(Attempt):
        def __init__(self, path: str, **settings: Any):
            told.append(settings)
            super().__init__(path, **settings)

        def working_on(self, first: int, end: int) -> Any:
            working.append((first, end))
            return super().working_on(first, end)

        def has_read(self, first: int, end: int) -> None:
            read.append((first, end))
            super().has_read(first, end)

    monkeypatch.setattr(annotate_unit, "Attempt", Spied)
    config = AnnotateConfig(read=ReadConfig(rows_per_batch=3, stall_timeout_sec=77.0))
    stage = Watched()
    annotator(tmp_path, stage, config=config).annotate(unit)
    assert ends(tmp_path) == [
        ("in/a.tar", 0, "annotated", None, None),
        ("in/a.tar", 1, "failed", "annotate", "timeout"),
        ("in/a.tar", 2, "failed", "read", "killed_worker"),
        ("in/a.tar", 3, "annotated", None, None),
        ("in/b.tar", 0, "annotated", None, None),
        ("in/b.tar", 1, "failed", "read", "timeout"),
    ]
    assert stage.batches == [["E1"], ["E4", "E5"]]
    assert told == [{"run_id": "run", "timeout_sec": 77.0, "name": "u"}]
    assert working == read == [(0, 3), (3, 6), (6, 9)]  # the last finds no row
    assert counted["annotate", "rejected_timeout"] == 1 and not path.exists()


def test_failed_rows_are_run_again_and_the_others_stay_as_they_are(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, a=["E1", "FAIL", "nothing"], b=["FAIL", "E2"])
    commit = annotator(tmp_path, Watched()).annotate(unit)
    before = records(tmp_path)
    again = Watched(FAIL="E7")
    # Another unit's commit changes nothing.
    annotator(tmp_path, again, retried={"v": commit}).annotate(unit)
    assert again.batches == [["E1", "FAIL", "nothing", "FAIL", "E2"]]
    annotator(tmp_path, Watched()).annotate(unit)
    again = Watched(FAIL="E7", E1="nothing")
    new = annotator(tmp_path, again, retried={"u": commit}).annotate(unit)
    assert again.batches == [["FAIL", "FAIL"]]
    after = records(tmp_path)
    assert [after[row] for row in (0, 2, 4)] == [before[row] for row in (0, 2, 4)]
    assert [(after[row]["outcome"], after[row]["text"]) for row in (1, 3)] == [("annotated", "E7")] * 2
    # The old commit, and that of the run between, do not count any more.
    assert new in read_commits(str(tmp_path))["u"] and commit not in read_commits(str(tmp_path))["u"]
    (tmp_path / "annotations" / "u.parquet").write_bytes(b"other")
    with pytest.raises(UserError, match="was changed since it was committed"):
        annotator(tmp_path, again, retried={"u": new}).annotate(unit)


def test_a_row_that_stood_for_the_rest_of_a_file_may_be_several_when_it_is_run_again(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, a=["E1", "E2", "E3"], b=["E4"])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2200])  # within the text of the first row
    commit = annotator(tmp_path, Watched()).annotate(unit)
    assert ends(tmp_path)[-2:] == [
        ("in/a.tar", 1, "failed", "read", "truncated_shard"),
        ("in/b.tar", 0, "annotated", None, None),
    ]
    (tmp_path / "a.tar").write_bytes(whole)
    again = Watched(E4="nothing")
    annotator(tmp_path, again, retried={"u": commit}).annotate(unit)
    assert again.batches == [["E2", "E3"]]
    assert [end[:3] for end in ends(tmp_path)] == [
        *(("in/a.tar", row, "annotated") for row in range(3)),
        ("in/b.tar", 0, "annotated"),
    ]


def test_rows_are_read_by_the_members_that_the_config_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.png", png(1)), ("x.alt", b"E1")])
    unit = Unit(name="u", parts=(Part(path=str(tmp_path / "a.tar"), file="a.tar", fingerprint="a"),))
    stage = Watched()
    annotator(tmp_path, stage, config=AnnotateConfig(members=MembersConfig(text_member="alt"))).annotate(unit)
    assert stage.batches == [["E1"]]


def test_what_all_models_run_on_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Modelled(FakeLinker):
        def model(self) -> str:
            return "one on cpu"

    annotate_unit._say_once.cache_clear()
    annotator(tmp_path, Modelled(), FakeLinker(), Modelled()).setup()
    assert capsys.readouterr().out == "annotate: one on cpu, one on cpu\n"
