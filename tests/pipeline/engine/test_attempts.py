"""What the notes of killed attempts tell the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.engine.attempts import EXIT_CODE, KILLED, TIMED_OUT, Attempt
from pipeline.units import GivenUp


def attempt(folder: Path, run_id: str = "run") -> Attempt:
    return Attempt(str(folder / "note.json"), run_id=run_id, timeout_sec=1e6, name="unit")


def die_at(folder: Path, first: int, end: int, run_id: str = "run", *, is_read: bool = True) -> None:
    """Leaves what an attempt leaves that a kill ends while it works on the rows `[first, end)`."""
    one = attempt(folder, run_id)
    with one.working_on(first, end):  # at its end nothing is noted
        if is_read:
            one.has_read(first, end)


def test_a_row_is_given_up_after_it_killed_two_workers_of_one_run(tmp_path: Path) -> None:
    die_at(tmp_path, 4, 8)
    second = attempt(tmp_path)
    # The rows of the batch run alone, and batches end before them.
    assert second.end_of_batch(0, 8) == 4 and second.end_of_batch(4, 8) == 5 and second.end_of_batch(8, 8) == 16
    assert [second.reason_of(row) for row in range(8)] == [None] * 8
    die_at(tmp_path, 6, 7)
    third = attempt(tmp_path)
    assert {row: third.reason_of(row) for row in range(8) if third.reason_of(row)} == {6: KILLED}
    # The others of the batch still run alone: one of them may be as bad.
    assert third.end_of_batch(7, 8) == 8


def test_a_kill_of_the_whole_run_says_little_about_the_row_in_work(tmp_path: Path) -> None:
    die_at(tmp_path, 4, 8, "first")
    die_at(tmp_path, 6, 7, "second")
    assert attempt(tmp_path, "third").reason_of(6) is None
    die_at(tmp_path, 6, 7, "third")
    assert attempt(tmp_path, "fourth").reason_of(6) is None
    die_at(tmp_path, 6, 7, "fourth")
    assert attempt(tmp_path, "fifth").reason_of(6) == KILLED


def test_a_row_that_was_not_suspected_before_is_first_tried_alone(tmp_path: Path) -> None:
    die_at(tmp_path, 3, 4)
    assert attempt(tmp_path).reason_of(3) is None
    die_at(tmp_path, 3, 4)
    assert attempt(tmp_path).reason_of(3) == KILLED


def test_a_row_that_kills_before_it_is_read_is_not_looked_into_and_then_its_file_is_not_read_on(
    tmp_path: Path,
) -> None:
    die_at(tmp_path, 4, 8)
    die_at(tmp_path, 7, 8)  # a kill after reading, of a row behind
    assert attempt(tmp_path).reason_of(7) == KILLED and attempt(tmp_path).given_up == GivenUp()
    die_at(tmp_path, 5, 6, is_read=False)
    assert attempt(tmp_path).given_up == GivenUp(rows={5: KILLED}) and attempt(tmp_path).reason_of(5) is None
    # Its neighbour is another row.
    die_at(tmp_path, 6, 7, is_read=False)
    assert attempt(tmp_path).given_up == GivenUp(rows={5: KILLED, 6: KILLED})
    die_at(tmp_path, 5, 6, is_read=False)
    last = attempt(tmp_path)
    assert last.given_up == GivenUp(rests={5: KILLED})
    assert [last.reason_of(row) for row in range(9)] == [None] * 9  # these are other rows now


def test_kills_of_the_whole_run_count_anew_for_what_is_given_up_next(tmp_path: Path) -> None:
    die_at(tmp_path, 4, 8, "first")
    for number in range(3):
        assert attempt(tmp_path, "?").given_up == GivenUp()
        die_at(tmp_path, 6, 7, f"run-{number}", is_read=False)
    for number in range(3):
        assert attempt(tmp_path, "?").given_up == GivenUp(rows={6: KILLED})
        die_at(tmp_path, 6, 7, f"again-{number}", is_read=False)
    assert attempt(tmp_path, "?").given_up == GivenUp(rests={6: KILLED})


def test_an_error_of_a_stage_is_no_death(tmp_path: Path) -> None:
    one = attempt(tmp_path)
    with pytest.raises(ValueError, match="of the stage"), one.working_on(0, 8):
        raise ValueError("of the stage")
    assert attempt(tmp_path).end_of_batch(0, 8) == 8


def test_the_note_is_deleted_at_the_end_and_one_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    die_at(tmp_path, 0, 8)
    attempt(tmp_path).end()
    assert not list(tmp_path.iterdir())
    (tmp_path / "note.json").write_text('{"run": ')
    assert attempt(tmp_path).end_of_batch(0, 8) == 8


HANGING = """
import sys, time
from pipeline.engine.attempts import Attempt
attempt = Attempt(sys.argv[1], run_id="run", timeout_sec=0.2, name="pairs-0")
with attempt.working_on(int(sys.argv[2]), int(sys.argv[3])):
    if sys.argv[4:]:
        attempt.has_read(int(sys.argv[2]), int(sys.argv[3]))
    time.sleep(60)
"""


def test_a_worker_that_hangs_ends_with_one_line_and_the_row_times_out_when_it_hangs_alone(tmp_path: Path) -> None:
    for first, end in ((0, 8), (2, 3)):
        command = [sys.executable, "-c", HANGING, str(tmp_path / "note.json"), str(first), str(end), "read"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
        assert done.returncode == EXIT_CODE
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            f"error: unit pairs-0: rows {first} to {end - 1} took longer than 0.2 s (--stall-timeout"
        )
    assert json.loads((tmp_path / "note.json").read_text())["reason"] == TIMED_OUT
    # Whatever the run: the clock is as good a witness.
    assert attempt(tmp_path, "another").reason_of(2) == TIMED_OUT
