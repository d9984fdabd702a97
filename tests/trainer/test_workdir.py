"""One run at a time in a folder."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline.schema import UserError
from pipeline.storage.file_lock import folder_lock
from trainer import workdir as workdir_module
from trainer.configs.base import override
from trainer.train import train
from trainer.workdir import is_finished, only_run_in

HOLD = """
import sys
from trainer.workdir import only_run_in
with only_run_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in `tmp_path / "run"`, which is not there yet."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_training_in_a_workdir_is_refused_before_it_changes_anything(holder, write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    (tmp_path / "run" / "tokenizer.json").write_text("of the first run, whose config is not yet written")
    message = (
        rf"^--workdir {tmp_path}/run is in use by trainer.train \(process {holder.pid} on .*; wait until it has en"
    )
    with pytest.raises(UserError, match=message):
        train(override(tiny, ["steps=1"]), data=data, workdir=str(tmp_path / "run"), mesh="1x1")
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "tokenizer.json"]


def test_a_run_from_before_alt_texts_goes_on(tiny, tmp_path):
    # Names were the texts that were no descriptions.
    changes = ["data.name_probability=0.3", "data.description_probability=0.7"]
    now = {"config": dataclasses.asdict(override(tiny, changes)), "data": "of the set"}
    before = json.loads(json.dumps(now))
    del before["config"]["data"]["name_probability"], before["config"]["data"]["alt_text_probability"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert not is_finished(str(tmp_path), now)
    now["config"]["data"] |= {"name_probability": 0.0, "alt_text_probability": 0.3}
    with pytest.raises(UserError, match=r"holds a run with data.alt_text_probability=0.0, but this run has .*=0.3"):
        is_finished(str(tmp_path), now)


def test_a_run_that_was_killed_leaves_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with only_run_in(str(tmp_path / "run")):
        pass
    assert os.listdir(tmp_path / "run") == []


def test_the_first_of_several_processes_holds_the_lock_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
    with folder_lock(str(tmp_path), command="process 0", option="--workdir"), only_run_in(str(tmp_path)):
        pass


def test_a_workdir_in_a_store_is_refused(write_set, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"^--workdir gs://bucket/run is in a store, but checkpoints and logs are written to a disk; give a folder"
    with pytest.raises(UserError, match=message):
        train(tiny, data=write_set(tmp_path / "set"), workdir="gs://bucket/run", mesh="1x1")
    assert os.listdir(tmp_path) == ["set"]
