"""The command as processes of its own: killed and started again, and several that train together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from trainer import train as train_module
from trainer.configs.base import override
from trainer.configs.experiments import get_experiment
from trainer.encoder import Encoder
from trainer.train import train

ROOT = pathlib.Path(__file__).parents[2]
CHANGES = [
    *("embedding_dim=8", "log_every=1", "checkpoint_every=8", "data.batch_size=16", "data.threads=1"),
    *("image.image_size_px=8", "image.patch_px=4", "image.stem_fold_px=2", "image.stem_channels=8"),
    *("image.width=16", "image.depth=1", "image.num_heads=2", "text.width=16", "text.num_heads=2"),
    *("text.vocabulary_size=300", "text.context_length=12", "loss.tile_classes=2"),
    "optimizer.kind=adamw",  # compiles in a fraction of Muon's time
]


def experiment(*changes):
    return override(get_experiment("multitask_demo"), [*CHANGES, *changes])


def started(data, workdir, mesh, *changes, options=()):
    """The command as a process, with the compiler's flags of the tests but not their eight devices."""
    words = [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    place = ["--data", str(data), "--workdir", str(workdir), "--mesh", mesh]
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.train", "--config", "multitask_demo", *place, *words, *options],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    return [json.loads(line) for line in whole]


def losses(workdir):
    return [line["loss"] for line in metrics(workdir)]


def kill_at(process, workdir, step):
    """Kills the process once it has written the line of `step`."""
    limit = time.monotonic() + 300
    while not any(line["step"] >= step for line in metrics(workdir)):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_has_the_losses_of_one_that_was_not(write_set, tmp_path):
    data, changes = write_set(tmp_path / "set"), ["steps=40", "loss.contrastive_weight=0"]
    # Step 8 has a checkpoint, which is being written when the process dies.
    kill_at(started(data, tmp_path / "killed", "1x1", *changes), tmp_path / "killed", 8)
    assert 8 <= len(losses(tmp_path / "killed")) < 40
    for workdir in ("killed", "whole"):
        train(experiment(*changes), data=data, workdir=str(tmp_path / workdir), mesh="1x1")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_an_error_in_one_of_two_processes_ends_both_at_once(write_set, tmp_path):
    data = write_set(tmp_path / "set")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    endless = [tmp_path / "two", "2x2", "steps=100000", "checkpoint_every=100000"]
    processes = [started(data, *endless, options=[*together, str(i)]) for i in range(2)]
    limit = time.monotonic() + 300
    while not losses(tmp_path / "two"):
        assert time.monotonic() < limit and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    # As for want of memory: process 1 is gone, without a word to the other.
    processes[1].kill()
    start = time.monotonic()
    outputs = [process.communicate(timeout=200) for process in processes]
    # Before a heartbeat is missed, which JAX takes 100 seconds for; a busy machine needs a minute.
    assert processes[0].returncode not in (0, None) and time.monotonic() - start < 90, outputs
    assert "Traceback" in outputs[0][1] or "error" in outputs[0][1]


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(write_set, tmp_path):
    data = write_set(tmp_path / "set")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    endless = [tmp_path / "two", "2x1", "steps=100000", "checkpoint_every=100000", "loss.contrastive_weight=0"]
    processes = [started(data, *endless, options=[*together, str(i)]) for i in range(2)]
    limit = time.monotonic() + 300
    while not losses(tmp_path / "two"):
        assert time.monotonic() < limit and all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    (step,) = [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()]
    assert f"stopped by SIGTERM; step {step} is saved, and the same command goes on from there" in outputs[0][0]


def test_two_processes_train_as_one_does(write_set, tmp_path, monkeypatch):
    data = write_set(tmp_path / "set")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    changes = ["steps=4", "data.weight_column=similarities"]
    changes += ["data.name_probability=0.2", "data.description_probability=0.4", "data.alt_text_probability=0.4"]
    processes = [started(data, tmp_path / "two", "2x2", *changes, options=[*together, str(i)]) for i in range(2)]
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(experiment(*changes), data=data, workdir=str(tmp_path / "one"), mesh="2x2")
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "mesh 2x2 on 4 simulated CPU device(s) of 2 processes" in outputs[0][0]
    assert outputs[0][0].count("wrote ") == 1
    # Gloo's own lines, from threads of its own, are all that process 1 prints.
    assert not [word for word in ("mesh", "step", "wrote") if word in outputs[1][0]]
    assert [line["step"] for line in metrics(tmp_path / "two")] == [1, 2, 3, 4]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert Encoder.load(tmp_path / "two" / "encoder").classifier.entity_ids == ("Q0", "Q1", "Q2", "Q3", "Q4")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_process_that_leaves_at_once_waits_for_no_thread(at_once):
    script = (
        "import threading, time\n"
        "from trainer.processes import leave\n"
        "def work(): time.sleep(0.5); print('written', flush=True)\n"
        "threading.Thread(target=work).start()\n"
        f"print('said'); leave(2, at_once={at_once})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ("said\n" if at_once else "said\nwritten\n")
