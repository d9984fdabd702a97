"""The lock of a folder for commands that do not wait."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.schema import UserError
from pipeline.storage import file_lock
from pipeline.storage.file_lock import folder_lock
from pipeline.storage.lock import output_lock


def hold(folder: Path, command: str) -> None:
    with folder_lock(str(folder), command=command, option="--workdir"):
        assert os.listdir(folder) == [".lock"]


def test_of_two_commands_the_second_is_refused_in_words_of_its_option(tmp_path: Path) -> None:
    with folder_lock(str(tmp_path), command="first", option="--output"):
        message = (
            rf"^--workdir {tmp_path} is in use by first \(process {os.getpid()} on .*, 0 minutes\); wait until it has "
            "ended, or stop it$"
        )
        with pytest.raises(UserError, match=message):
            hold(tmp_path, "second")
    hold(tmp_path, "second")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_named_by_its_option(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=rf"^--workdir {tmp_path} cannot be written \(a folder has the name of a file"):
        hold(tmp_path, "first")


def test_where_there_are_no_locks_a_command_warns_and_one_that_could_wait_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_lock.fcntl, "flock", none)
    words = f"{tmp_path} lies on a file system without locks (No locks available), so it cannot be seen whether another"
    with folder_lock(str(tmp_path), command="first", option="--workdir"):
        pass
    assert capsys.readouterr().out == (f"warning: --workdir {words} run writes to it; make sure that there is none\n")
    with pytest.raises(UserError) as refused:
        with output_lock(str(tmp_path), command="second"):
            pass
    assert str(refused.value) == f"--output {words} run writes to it; choose another --output"
