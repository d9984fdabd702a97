"""Runs whose folder is on gs://: what they write is what they write to a disk, however often they are stopped."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from tests.infra.conftest import DEMO, ROOT, digests, environment
from tests.infra.store import BUCKET, LOCKED_BUCKET, Store

STEPS = 12
FIELDS = [
    *(f"steps={STEPS}", "log_every=1", "checkpoint_every=4", "data.batch_size=16", "data.workers=0"),
    *("optimizer.kind=adamw", "optimizer.warmup_steps=2", "image.depth=1"),
]
COMPILED = "--xla_backend_optimization_level=0"  # most of the time would go to compiling
HOLD = """
import sys
from trainer.workdir import only_run_in
with only_run_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def command(workdir: str, *options: str, fields: Sequence[str] = ()) -> list[str]:
    """Returns the command that trains in `workdir`."""
    changed = [word for field in (*FIELDS, *fields) for word in ("--set", field)]
    trained = ["--config", "multitask_demo", "--data", str(DEMO / "i2e"), "--workdir", workdir]
    return [sys.executable, "-m", "trainer.train", *trained, *changed, *options]


def started(store: Store, words: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a command that prints to one pipe."""
    variables = {**environment(), **store.environment_of_runs, "MOFI_CACHE": str(store.cache), "XLA_FLAGS": COMPILED}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def printed_by(store: Store, words: Sequence[str], status: int = 0) -> str:
    """Runs a command, and returns what it printed."""
    with started(store, words) as process:
        printed = process.communicate()[0]
    assert process.returncode == status, printed
    return printed


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    raise AssertionError("".join(seen))


def losses(lines: str) -> list[float]:
    return [json.loads(line)["loss"] for line in lines.splitlines()]


def steps_of_events(store: Store, run: str, folder: Path) -> list[int]:
    """Returns the steps that TensorBoard shows, sorted."""
    steps = []
    for name in store.names(f"{run}/events.out.tfevents."):
        path = folder / Path(name).name
        path.write_bytes(store.read(name))
        for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = Event.FromString(payload)
            steps += [event.step for value in event.summary.value if value.tag == "loss"]
    return sorted(steps)


@pytest.mark.cluster
def test_a_run_on_gs_that_is_killed_stopped_and_damaged_ends_as_one_on_a_disk(store: Store, tmp_path: Path) -> None:
    printed_by(store, command(str(tmp_path / "run")))
    on_gs = command(f"gs://{BUCKET}/run")

    with started(store, on_gs) as process:
        while not store.names("run/checkpoints/8/default/"):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        process.kill()
    assert store.names("run/checkpoints/4/commit_success.txt")
    assert not store.names("run/checkpoints/8/commit_success.txt")

    with started(store, on_gs) as process:
        read_until(process, f"resumed gs://{BUCKET}/run at step 4\n")
        read_until(process, f"step 9/{STEPS} ")
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
    assert process.returncode == 75, said
    stopped_at = re.search(r"stopped by SIGTERM; step (\d+) is saved", said)
    assert stopped_at is not None and 9 <= int(stopped_at[1]) < STEPS

    saved = f"checkpoints/{stopped_at[1]}"
    for name in store.names(f"run/{saved}/default/ocdbt.process_0/d/"):
        store.write(name, b"damaged")
    printed = printed_by(store, on_gs)
    damaged = f"gs://{BUCKET}/run/damaged_checkpoints"
    assert re.search(rf"warning: checkpoint gs://{BUCKET}/run/{saved} is not good .* it is moved to {damaged}", printed)
    assert f"resumed gs://{BUCKET}/run at step 8\n" in printed
    assert not store.names(f"run/{saved}/") and store.names(f"run/damaged_checkpoints/{stopped_at[1]}/")

    assert losses(store.read("run/metrics.jsonl").decode()) == losses((tmp_path / "run" / "metrics.jsonl").read_text())
    assert store.digests("run/encoder") == digests(tmp_path / "run" / "encoder")
    assert not store.names("run/.locks/")
    assert steps_of_events(store, "run", tmp_path) == list(range(1, STEPS + 1))
    assert "is already trained with this config on this data" in printed_by(store, on_gs)


@pytest.mark.cluster
def test_several_processes_train_on_gs_and_others_start_from_there(store: Store, tmp_path: Path) -> None:
    for place in (f"gs://{BUCKET}", str(tmp_path)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        several = ["--mesh", "2x1", "--coordinator", coordinator, "--num-processes", "2", "--profile-steps", "2-3"]
        words = command(f"{place}/two", *several, fields=["steps=4", "checkpoint_every=2"])
        with started(store, [*words, "--process-id", "1"]) as second:
            printed = printed_by(store, [*words, "--process-id", "0"])
            said = second.communicate()[0]
        assert second.returncode == 0, said
        assert f"profiled steps 2 to 3: {place}/two/plugins/profile/" in printed
        writing = [sys.executable, "-m", "trainer.write_encoder", "--run", f"{place}/two", "--step", "2"]
        printed_by(store, writing)
    assert any(name.endswith(".xplane.pb") for name in store.names("two/plugins/profile/"))
    for encoder in ("encoder", "encoder-2"):
        assert store.digests(f"two/{encoder}") == digests(tmp_path / "two" / encoder)
    source = f"gs://{BUCKET}/two/checkpoints/4"
    printed = printed_by(store, command(str(tmp_path / "further"), fields=["steps=2", f"init_from={source}"]))
    assert f"initial parameters from {source}: image tower: " in printed


@pytest.mark.cluster
def test_a_workdir_on_gs_that_is_in_use_or_may_not_be_written_is_refused(store: Store) -> None:
    with started(store, [sys.executable, "-c", HOLD, f"gs://{BUCKET}/held"]) as holder:
        read_until(holder, "held\n")
        printed = printed_by(store, command(f"gs://{BUCKET}/held"), status=2)
        assert f"error: --workdir gs://{BUCKET}/held is in use by trainer.train (process {holder.pid} on " in printed
        assert "wait until it has ended, or stop it" in printed
        holder.communicate()
    assert store.names("held/") == []
    printed = printed_by(store, command(f"gs://{LOCKED_BUCKET}/run"), status=2)
    assert re.search(rf"error: --workdir gs://{LOCKED_BUCKET}/run cannot be read or written .*403.*\n", printed), (
        printed
    )
