"""A run that meets what it must not trust: numbers, checkpoints, signals, records."""

import json
import os
import pathlib
import shutil
import signal
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.schema import UserError
from trainer import loop as loop_module
from trainer import train as train_module
from trainer.configs.base import override
from trainer.termination import Terminated
from trainer.train import main, train


@pytest.fixture(scope="module")
def small(tiny):
    """An experiment that compiles quickly."""
    changes = ["loss.contrastive_weight=0", "loss.classification_weight=1", "optimizer.kind=adamw"]
    return override(tiny, [*changes, "image.scale_init_by_data=false"])


def metrics(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [line["loss"] for line in metrics(workdir)]


def steps_kept(workdir):
    return sorted(int(path.name) for path in (pathlib.Path(workdir) / "checkpoints").iterdir())


def test_a_rate_that_diverges_stops_the_run_and_saves_nothing_of_it(write_set, small, tmp_path):
    data, run = write_set(tmp_path / "set"), tmp_path / "run"
    # The first update is finite, and so large that the products of the second step overflow.
    changes = ["optimizer.learning_rate=1e38", "optimizer.warmup_steps=1", "log_every=100", "checkpoint_every=10"]
    with pytest.raises(UserError) as stopped:
        train(override(small, changes), data=data, workdir=str(run), mesh="1x1")
    report = json.loads((run / "not_finite.json").read_text())
    assert str(stopped.value).startswith(f"{report['fault']} at step {report['step']}, whose images were ")
    assert "lower the learning rate" in str(stopped.value)
    assert 2 <= report["step"] <= 3  # not step 10, at which it was noticed
    assert len(report["image_ids"]) == 16 and report["image_ids"][0] in str(stopped.value)
    assert steps_kept(run) == [] and not (run / "encoder").exists()


def with_nan(state):
    kernel = state.params["image"]["head"]["kernel"].at[1, 2].set(jnp.nan)
    head = {**state.params["image"]["head"], "kernel": kernel}
    return state.replace(params={**state.params, "image": {**state.params["image"], "head": head}})


def wrong_step(workdir, change, step=2):
    """Returns a train step that changes what the real one returns at one step."""
    real_make = loop_module.make_train_step

    def make(*args):
        real, taken = real_make(*args), []

        def train_step(state, batch):
            taken.append(None)
            state, result = real(state, batch)
            return change(state, result) if len(taken) == step else (state, result)

        return train_step

    return make


def test_a_gradient_that_is_not_finite_is_named_with_its_step(finished, small, tmp_path, monkeypatch):
    def change(state, result):
        return state, {**result, "finite_gradients": result["finite_gradients"].at[0].set(False)}

    monkeypatch.setattr(loop_module, "make_train_step", wrong_step(tmp_path, change))
    first = "class_vectors"  # in the order of the tree
    with pytest.raises(UserError, match=f"^the gradient of {first} is not finite at step 2, whose images were"):
        train(override(small, ["log_every=4"]), data=finished[0], workdir=str(tmp_path), mesh="1x1")


def test_a_state_that_is_not_finite_is_not_saved_where_all_metrics_are(finished, small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "make_train_step", wrong_step(tmp_path, lambda s, r: (with_nan(s), r), step=4))
    with pytest.raises(UserError, match="^params/image/head/kernel is not finite at step 4, whose images were"):
        train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert steps_kept(tmp_path) == []


def copied(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "encoder")
    assert steps_kept(tmp_path) == [8, 10]


def test_a_latest_checkpoint_that_is_not_finite_is_named_and_the_one_before_it_used(
    finished, small, tmp_path, monkeypatch, capsys
):
    copied(finished, tmp_path)
    manager = ocp.CheckpointManager(tmp_path / "checkpoints")
    state = manager.restore(10, args=ocp.args.StandardRestore())
    state["params"]["image"]["head"]["kernel"] = state["params"]["image"]["head"]["kernel"].at[0, 0].set(jnp.inf)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    manager.reload()
    manager.save(10, args=ocp.args.StandardSave(state))
    manager.close()
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    said = capsys.readouterr().out
    assert f"checkpoint {tmp_path}/checkpoints/10 is not good (NotFiniteError: params/image/head/kernel is not" in said
    assert f"resumed {tmp_path} at step 8" in said
    assert steps_kept(tmp_path) == [8, 10] and (tmp_path / "damaged_checkpoints" / "10").is_dir()
    assert losses(tmp_path) == losses(finished[1])


def test_a_latest_checkpoint_that_cannot_be_read_is_named_and_the_one_before_it_used(
    finished, small, tmp_path, monkeypatch, capsys
):
    copied(finished, tmp_path)
    for path in (tmp_path / "checkpoints" / "10").rglob("_METADATA"):
        path.write_bytes(path.read_bytes()[:10])
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    said = capsys.readouterr().out
    assert f"warning: checkpoint {tmp_path}/checkpoints/10 is not good (" in said and "at step 8" in said
    assert losses(tmp_path) == losses(finished[1])


def test_a_run_without_a_good_checkpoint_says_so(finished, small, tmp_path):
    copied(finished, tmp_path)
    for path in (tmp_path / "checkpoints").rglob("_METADATA"):
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match=rf"checkpoints holds no good checkpoint; 2 are in {tmp_path}/damaged_check"):
        train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")


def test_a_checkpoint_of_another_architecture_names_what_differs(finished, small, tmp_path):
    copied(finished, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["image"]["width"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = (
        r"10 is of another architecture \(image/blocks/block_0/attention/key/bias: \(16,\) there, \(32,\) here; .*more"
    )
    with pytest.raises(UserError, match=message):
        train(override(small, ["image.width=32"]), data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert steps_kept(tmp_path) == [8, 10]


def killed_after(monkeypatch, step):
    real = loop_module.Logs.write

    def write(self, at, written):
        real(self, at, written)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop_module.Logs, "write", write)


def test_sigterm_saves_the_step_and_the_same_command_goes_on(finished, small, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        killed_after(patch, 6)
        with pytest.raises(Terminated, match="^stopped by SIGTERM; step 6 is saved, and the same command goes on"):
            train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps_kept(tmp_path) == [4, 6]
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(small, data=finished[0], workdir=str(tmp_path), mesh="1x1")
    assert losses(tmp_path) == losses(finished[1])


def test_sigterm_ends_the_command_with_a_code_of_its_own(tmp_path, monkeypatch, capsys):
    def terminated(*_, **__):
        raise Terminated(7)

    monkeypatch.setattr(train_module, "train", terminated)
    monkeypatch.setattr(sys, "argv", ["train", "--config", "tiny", "--data", "x", "--workdir", str(tmp_path)])
    monkeypatch.setattr(train_module, "get_experiment", lambda name: train_module.EXPERIMENTS["supervised_demo"]())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 75
    assert "step 7 is saved" in capsys.readouterr().out


def test_skipped_records_are_counted_in_the_metrics(write_set, small, tmp_path, monkeypatch):
    data, run = write_set(tmp_path / "set"), tmp_path / "run"
    path = tmp_path / "set" / "shard-00000.tfrecord"
    content = bytearray(path.read_bytes())
    content[12] ^= 0xFF  # the first byte of the first record
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^record 0 of {path} is damaged \("):
        train(override(small, ["steps=3"]), data=data, workdir=str(run / "strict"), mesh="1x1")
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(override(small, ["steps=3", "data.num_skippable=1"]), data=data, workdir=str(run), mesh="1x1")
    assert metrics(run)[-1]["skipped_records"] == 1  # 48 images: all of the set were read
    events = EventAccumulator(str(run)).Reload()
    assert "skipped_records" in events.Tags()["tensors"]
