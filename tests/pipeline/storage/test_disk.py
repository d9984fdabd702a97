import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pipeline.schema import UserError
from pipeline.storage.disk import check_writable, disk_error, reporting_disk_errors


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "is full; free some space"), (errno.EROFS, "is read-only; choose another")]
)
def test_a_full_or_read_only_disk_is_reported_with_what_to_do(number: int, advice: str) -> None:
    assert advice in str(disk_error(OSError(number, "no"), "out"))
    # Beam hands a worker's error on as text.
    assert advice in str(disk_error(RuntimeError(f"OSError: [Errno {number}] no [while running 'Write']"), "out"))
    assert disk_error(ValueError("else"), "out") is None


def test_the_cause_of_an_error_is_looked_at_too() -> None:
    with pytest.raises(UserError, match="--output out is full; free some space"), reporting_disk_errors("out"):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("writing failed") from error


def test_a_file_that_is_missing_elsewhere_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "input.tar"))
    assert disk_error(missing, str(tmp_path / "out")) is None
    below = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "out" / "a"))
    assert "cannot be created there" in str(disk_error(below, str(tmp_path / "out")))


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), reporting_disk_errors("out"):
        raise KeyError("x")


def test_an_output_without_room_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB free, the run needs about 1000000000.00 GB; free some space"):
        check_writable(str(tmp_path), needed_bytes=10**18)


def test_what_lies_in_the_output_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard").write_bytes(b"x" * 1_000_000)
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=250, f_frsize=4000))  # 1 MB is free
    check_writable(str(tmp_path / "out"), needed_bytes=1_990_000)
    # The file takes whole blocks of the disk: a little more than 1 MB.
    with pytest.raises(UserError, match=r"has 0.00 GB free, the run needs about 0.00 GB"):
        check_writable(str(tmp_path / "out"), needed_bytes=2_100_000)


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="lies below a file; choose another --output"):
        check_writable(str(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "command",
    [
        ["pipeline.build_kb", "--source", "{tmp}/source.jsonl"],
        ["pipeline.demo.corpus", "--packages", "{tmp}"],
        ["pipeline.tagger.train"],
    ],
)
def test_a_command_whose_output_cannot_be_made_ends_with_one_line_and_code_2(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "source.jsonl").write_text('{"id": "Q1", "label": "one"}\n')
    arguments = [word.format(tmp=tmp_path) for word in command]
    result = subprocess.run(
        [sys.executable, "-m", *arguments, "--output", str(tmp_path / "file" / "out")], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == f"error: --output {tmp_path}/file/out lies below a file; choose another --output\n"
