"""Worker processes: one that dies is replaced, and a row that kills twice is given up."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config import AnnotateConfig
from pipeline.engine import annotate_unit
from pipeline.engine.annotate_unit import UnitAnnotator
from pipeline.engine.processes import annotate_in_processes
from pipeline.runners import RunnerConfig, set_store_options
from pipeline.schema import Rejection, Row, UserError
from pipeline.storage.unit_commits import annotation_path, read_commits
from pipeline.units import Part, Unit
from tests.fakes import FakeLinker, pair, write_tar


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of a stage that worker processes can import too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("deadly_stage").DeadlyStage


def make_unit(folder: Path, name: str, texts: Sequence[str]) -> Unit:
    path = folder / f"{name}.tar"
    write_tar(path, [member for row, text in enumerate(texts) for member in pair(f"{name}/{row}", text, row)])
    return Unit(name=name, parts=(Part(path=str(path), file=path.name, fingerprint=name),))


def annotator(output: Path, stage: Any) -> UnitAnnotator:
    return UnitAnnotator(stages=(stage,), output=str(output), fingerprint={}, config=AnnotateConfig(), run_id="run")


class Modelled(FakeLinker):
    """A stage that says what its model runs on."""

    def __init__(self, device: str):
        super().__init__()
        self._device = device

    def model(self) -> str:
        return f"model on {self._device}"


@pytest.mark.parametrize(
    ("worker", "device", "is_said"),
    [(None, "cpu", True), (0, "cpu", True), (1, "cpu", False), (1, "cuda:1", True)],
)
def test_what_models_run_on_is_said_once_and_for_processes_without_a_gpu_by_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    worker: int | None,
    device: str,
    is_said: bool,
) -> None:
    annotate_unit._say_once.cache_clear()
    monkeypatch.setattr(annotate_unit, "this_worker", lambda: worker)
    for _ in range(2):
        annotator(tmp_path / "out", Modelled(device)).setup()
    assert capsys.readouterr().out == (f"annotate: model on {device}\n" if is_said else "")


def test_a_row_that_kills_its_worker_twice_is_failed_and_all_other_rows_are_annotated(
    tmp_path: Path, deadly: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["E1", "E2 here", "KILL", "nothing", "E1"]
    units = [make_unit(tmp_path, "deadly", texts), make_unit(tmp_path, "other", ["E1"])]
    annotate_in_processes(units, annotator(tmp_path / "out", deadly()), num_workers=2)
    rows = pq.read_table(annotation_path(str(tmp_path / "out"), "deadly")).to_pylist()
    assert [(row["row"], row["outcome"], row["reason"]) for row in rows] == [
        (0, "annotated", None),
        (1, "annotated", None),
        (2, "failed", "killed_worker"),
        (3, "dropped", "no_mention"),
        (4, "annotated", None),
    ]
    assert sorted(read_commits(str(tmp_path / "out"))) == ["deadly", "other"]
    assert not list((tmp_path / "out" / "units" / "notes").iterdir())
    message = (
        "warning: a worker process was killed by SIGKILL while it annotated unit deadly; the machine may lack memory "
        "for --workers of them; the unit is tried again"
    )
    assert capsys.readouterr().err.splitlines() == [message, message]


@pytest.mark.parametrize(
    ("at", "ends"),
    [
        ("text", [("a/0", 0, None), ("a/1", 1, "killed_worker"), ("a/2", 2, None), ("b/0", 0, None)]),
        ("bytes", [("a/0", 0, None), ("a.tar:1", 1, "killed_worker"), ("b/0", 0, None)]),
    ],
)
def test_a_row_that_kills_while_it_is_read_costs_itself_or_the_rest_of_its_file(
    tmp_path: Path, deadly: Any, at: str, ends: list[tuple[str, int, str | None]]
) -> None:
    parts = [
        part
        for name, texts in (("a", ["E1", "KILL", "E1"]), ("b", ["E1"]))
        for part in make_unit(tmp_path, name, texts).parts
    ]
    unit = Unit(name="two", parts=tuple(parts))
    reader = importlib.import_module("deadly_stage").DeadlyReader(at=at)
    annotate_in_processes([unit], annotator(tmp_path / "out", reader), num_workers=1)
    rows = pq.read_table(annotation_path(str(tmp_path / "out"), "two")).to_pylist()
    assert [(row["image_id"], row["row"], row["reason"]) for row in rows] == ends
    assert all(row["outcome"] == ("failed" if row["reason"] else "annotated") for row in rows)


def test_workers_that_die_whatever_they_do_end_the_run_with_one_line(tmp_path: Path, deadly: Any) -> None:
    unit = make_unit(tmp_path, "a", ["E1"] * 9)
    # Each death gives up another row, so that the fourth comes before any unit is finished.
    with pytest.raises(UserError, match="while it annotated unit a; .*; 4 died one after the other; finished units"):
        annotate_in_processes([unit], annotator(tmp_path / "out", deadly(always=True)), num_workers=1)


def test_an_error_of_a_stage_comes_back_as_it_is(tmp_path: Path, deadly: Any) -> None:
    unit = make_unit(tmp_path, "a", ["WRONG"])
    with pytest.raises(UserError, match="^the model is missing; train it$"):
        annotate_in_processes([unit], annotator(tmp_path / "out", deadly()), num_workers=1)
    # What a worker begins with is called in it: options of Beam that are none are refused there.
    begin = functools.partial(set_store_options, RunnerConfig(workers=0), ())
    with pytest.raises(UserError, match="^--workers is 0; give at least 1$"):
        annotate_in_processes([unit], annotator(tmp_path / "out", deadly()), num_workers=1, begin=begin)
    broken = dataclasses.replace(annotator(tmp_path / "out", deadly()), stages=(None,))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="AttributeError: 'NoneType'"):
        annotate_in_processes([unit], broken, num_workers=1)


def test_garbage_is_not_looked_for_among_what_was_loaded_before_a_unit(tmp_path: Path) -> None:
    frozen = []

    class Looking(FakeLinker):
        def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
            frozen.append(gc.get_freeze_count())
            return super().run(rows)

    annotator(tmp_path / "out", Looking()).annotate(make_unit(tmp_path, "a", ["E1"]))
    [num_frozen] = frozen
    assert num_frozen > 10_000
    assert gc.get_freeze_count() == 0


def test_worker_processes_know_their_numbers(tmp_path: Path, deadly: Any) -> None:
    unit = make_unit(tmp_path, "a", ["WORKER"])
    with pytest.raises(UserError, match="this is worker 0"):
        annotate_in_processes([unit], annotator(tmp_path / "out", deadly()), num_workers=1)
