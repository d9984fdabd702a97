"""Two runs and one output folder."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from apache_beam.io.filesystem import FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from pipeline.storage import lock
from pipeline.storage.file_lock import this_process
from pipeline.storage.lock import output_lock

HOLD = "import sys; from pipeline.storage.lock import output_lock\nwith output_lock(sys.argv[1], command='first'): "


def start_holder(folder: Path, then: str) -> subprocess.Popen[str]:
    """Starts a process that takes the lock, prints "held", and does `then`."""
    code = HOLD + f"print('held', flush=True); {then}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_who_has_the_lock(tmp_path: Path) -> None:
    with start_holder(tmp_path, "sys.stdin.read()") as process:
        message = (
            rf"--output {tmp_path} is in use by first \(process {process.pid} on .*, since .* UTC, 0 minutes\); wait"
        )
        with pytest.raises(UserError, match=message):
            with output_lock(str(tmp_path), command="second"):
                pass
        process.kill()


def test_the_lock_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    with start_holder(tmp_path, "sys.stdin.read()") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".lock").exists()
    with output_lock(str(tmp_path), command="second"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_run_that_waits_gets_the_lock_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "_POLL_SEC", 0.02)
    with start_holder(tmp_path, "import time; time.sleep(0.5)") as process:
        with output_lock(str(tmp_path), command="second", wait=True):
            process.wait()
            assert process.returncode == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"second: waits, since --output .* is in use by first .*", line)


def test_an_error_in_a_run_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        with output_lock(str(tmp_path), command="first"):
            raise RuntimeError
    with output_lock(str(tmp_path), command="second"):
        pass


def test_many_runs_that_wait_never_hold_the_lock_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL_SEC", 0.0005)
    holders: list[int] = []
    most = 0

    def hold(number: int) -> None:
        nonlocal most
        for _ in range(50):
            with output_lock(str(tmp_path), command="count", wait=True):
                holders.append(number)
                most = max(most, len(holders))
                time.sleep(0.0005)
                holders.remove(number)

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=f"--output {tmp_path} cannot be written"):
        with output_lock(str(tmp_path), command="first"):
            pass


class Store:
    """An object store in memory with a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.objects: dict[str, tuple[dict, float]] = {}
        self.now_sec = 1000.0
        monkeypatch.setattr("pipeline.storage.beam_files.write_json", self.write)
        monkeypatch.setattr("pipeline.storage.beam_files.read_json", lambda path: self.objects[path][0])
        monkeypatch.setattr(
            "pipeline.storage.beam_files.delete_files", lambda paths: [self.objects.pop(path) for path in paths]
        )
        monkeypatch.setattr(FileSystems, "match", self.match)

    def write(self, path: str, value: dict) -> None:
        self.objects[path] = (value, self.now_sec)

    def match(self, patterns: list[str]) -> list[MatchResult]:
        (pattern,) = patterns
        found = [
            FileMetadata(path, 5, time_sec)
            for path, (_, time_sec) in sorted(self.objects.items())
            if fnmatch.fnmatchcase(path, pattern)
        ]
        return [MatchResult(patterns[0], found)]


def test_in_an_object_store_a_second_run_withdraws_and_a_stale_claim_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    with output_lock("gs://bucket/i2e", command="first"):
        (claim,) = store.objects
        store.now_sec += 599
        with pytest.raises(UserError, match="gs://bucket/i2e is in use by first .*; wait for it"):
            with output_lock("gs://bucket/i2e", command="second"):
                pass
        store.now_sec += 1
        message = (
            f"is locked by first .*, of which nothing was heard for 10 minutes; if it has ended, remove {claim}, and"
        )
        with pytest.raises(UserError, match=message):
            with output_lock("gs://bucket/i2e", command="second"):
                pass
        assert list(store.objects) == [claim]
    assert not store.objects


def test_in_an_object_store_the_claim_of_a_killed_run_of_this_machine_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(monkeypatch)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claim = "gs://bucket/i2e/.locks/x.json"
    store.write(claim, {**this_process("first"), "pid": ended.pid})
    with output_lock("gs://bucket/i2e", command="second"):
        assert claim not in store.objects and len(store.objects) == 1
    assert f"second: takes the place of first (process {ended.pid} on" in capsys.readouterr().out
    store.write(claim, {**this_process("first"), "pid": ended.pid, "host": "elsewhere"})
    with pytest.raises(UserError, match="in use by first"):
        with output_lock("gs://bucket/i2e", command="second"):
            pass


def test_a_claim_is_renewed_while_its_run_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    monkeypatch.setattr(lock, "_RENEW_SEC", 0.01)
    with output_lock("gs://bucket/i2e", command="first"):
        store.now_sec = 5000.0
        for _ in range(500):
            if [time_sec for _, time_sec in store.objects.values()] == [5000.0]:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the claim was not renewed")
        (thread,) = (one for one in threading.enumerate() if one.name == "renew-lock")
    thread.join(5)
    assert not thread.is_alive() and not store.objects


def test_a_claim_that_is_being_renewed_at_the_end_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    monkeypatch.setattr(lock, "_RENEW_SEC", 0.0)
    renewing = threading.Event()

    def write_slowly(path: str, value: dict) -> None:
        if store.objects:
            renewing.set()
            time.sleep(0.2)
        store.write(path, value)

    monkeypatch.setattr("pipeline.storage.beam_files.write_json", write_slowly)
    with output_lock("gs://bucket/i2e", command="first"):
        assert renewing.wait(10)
    time.sleep(0.4)
    assert not store.objects


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_the_folder_of_a_claim_is_no_pattern(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    with output_lock("gs://bucket/run1", command="first"), output_lock(f"gs://bucket/{name}", command="second"):
        assert len(store.objects) == 2
        with pytest.raises(UserError, match="is in use by second"):
            with output_lock(f"gs://bucket/{name}", command="third"):
                pass
    assert not store.objects


def test_of_two_claims_at_one_moment_none_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    first, second = (lock._Claim("gs://bucket/i2e", name) for name in ("first", "second"))
    first._write()
    second._write()
    for claim in (first, second):
        monkeypatch.setattr(claim, "_write", lambda: None)
        monkeypatch.setattr(claim, "_remove", lambda path: None)
        assert "in use by" in (claim.acquire() or "")
    assert len(store.objects) == 2
