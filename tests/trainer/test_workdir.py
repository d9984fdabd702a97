"""One run at a time in a folder."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from pipeline.schema import UserError
from pipeline.storage.file_lock import folder_lock
from trainer import workdir as workdir_module
from trainer.configs.base import override
from trainer.train import train
from trainer.workdir import check_workdir, is_finished, only_run_in, write_config

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


def test_a_workdir_in_an_unknown_store_is_refused_at_once(write_set, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir s3://bucket/run is in a store that is not gs://; give a folder"):
        train(tiny, data=write_set(tmp_path / "set"), workdir="s3://bucket/run", mesh="1x1")
    assert os.listdir(tmp_path) == ["set"]


def resolved(experiment):
    return {"config": dataclasses.asdict(experiment), "data": "of the set"}


def started(workdir, experiment):
    """A run's folder as its first command leaves it, before an encoder is written."""
    assert not is_finished(str(workdir), resolved(experiment))
    write_config(str(workdir), resolved(experiment), ["Q1", "Q2"], ["red panda", "東京"], 0)


def test_a_new_run_states_its_config_and_classes(tiny, tmp_path):
    run = tmp_path / "a" / "run"
    started(run, tiny)
    assert sorted(os.listdir(run)) == ["classes.json", "config.json"]
    content = (run / "config.json").read_text()
    assert json.loads(content) == json.loads(json.dumps(resolved(tiny))) and content.startswith('{\n "config": {\n')
    assert json.loads((run / "classes.json").read_text()) == {
        "entity_ids": ["Q1", "Q2"],
        "names": ["red panda", "東京"],
    }


def test_what_a_start_that_failed_has_left_is_deleted_by_the_first_process(tiny, tmp_path, monkeypatch):
    left = [tmp_path / "tokenizer.json", tmp_path / "classes.json"]
    (tmp_path / "checkpoints").mkdir()  # an empty one counts as none
    for path in left:
        path.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(workdir_module.jax, "process_index", lambda: 1)
        assert not is_finished(str(tmp_path), resolved(tiny))
        write_config(str(tmp_path), resolved(tiny), [], [], 0)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "classes.json", "tokenizer.json"]
    assert not is_finished(str(tmp_path), resolved(tiny))
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_checkpoints_without_a_config_are_refused(tiny, tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError) as refused:
        is_finished(str(tmp_path), resolved(tiny))
    assert str(refused.value) == (
        f"{tmp_path}/checkpoints belongs to a run whose config.json is missing; put it back, or choose another "
        "--workdir"
    )


def test_a_field_without_a_value_that_this_version_does_not_know_is_named(tiny, tmp_path):
    started(tmp_path, tiny)
    path = tmp_path / "config.json"
    stated = json.loads(path.read_text())
    stated["config"]["gone"] = None
    path.write_text(json.dumps(stated))
    with pytest.raises(UserError, match="gone"):
        is_finished(str(tmp_path), resolved(tiny))


def test_a_run_on_other_data_is_refused(tiny, tmp_path):
    started(tmp_path, tiny)
    with pytest.raises(UserError) as refused:
        is_finished(str(tmp_path), {**resolved(tiny), "data": "of another"})
    assert str(refused.value) == (f"--workdir {tmp_path} holds a run on other data; choose another one, or delete it")


# As docs/training.md lists them.
MAY_CHANGE = {
    *("log_every", "evaluate_every", "checkpoint_every", "checkpoints_kept", "remat", "micro_batches", "scan_unroll"),
    *("deterministic", "loss.tile_classes", "data.workers", "data.threads", "data.prefetch", "data.num_skippable"),
}


def fields(config, prefix=""):
    """The names of all fields of a config, with those of its parts."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_only_what_does_not_change_what_is_learned_may_change(tiny, tmp_path):
    started(tmp_path, tiny)
    free = set()
    for field in fields(dataclasses.asdict(tiny)):
        now = resolved(tiny)
        *parts, name = field.split(".")
        part = now["config"][parts[0]] if parts else now["config"]
        before, part[name] = part[name], -1  # no field has this value
        try:
            assert not is_finished(str(tmp_path), now)
            free.add(field)
        except UserError as refused:
            expected = (
                f"--workdir {tmp_path} holds a run with {field}={before}, but this run has {field}=-1; choose another "
                "one, or delete it"
            )
            assert str(refused) == expected
    assert free == MAY_CHANGE


def with_encoder(workdir, content):
    (workdir / "encoder").mkdir()
    (workdir / "encoder" / "encoder.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("content", "steps", "finished"),
    [
        ({"provenance": {"config": {"steps": 10}}}, 10, True),
        ({"provenance": {"config": {"steps": 10}}}, 11, False),  # the run is extended
        ({"provenance": {"config": {}}}, 10, False),
        ({"provenance": {}}, 10, False),
        ({}, 10, False),
    ],
)
def test_a_run_has_ended_when_there_is_an_encoder_of_so_many_steps(
    tiny, tmp_path, monkeypatch, content, steps, finished
):
    started(tmp_path, tiny)
    with_encoder(tmp_path, content)
    now = resolved(override(tiny, [f"steps={steps}"]))
    looked_at = []
    monkeypatch.setattr(workdir_module, "is_whole", lambda path: looked_at.append(path) or True)
    assert is_finished(str(tmp_path), now) == finished
    assert looked_at == [str(tmp_path / "encoder")]
    monkeypatch.setattr(workdir_module, "is_whole", lambda _: False)
    assert not is_finished(str(tmp_path), now)


def test_a_run_goes_on_without_the_fields_that_came_later(tiny, tmp_path):
    started(tmp_path, tiny)
    before = json.loads((tmp_path / "config.json").read_text())
    del before["config"]["augment"], before["config"]["scan_layers"], before["config"]["image"]["pre_norm"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert not is_finished(str(tmp_path), resolved(tiny))
    # The config that was given at the start counts, not today's default.
    with pytest.raises(UserError, match="holds a run with augment.zoom=0.1, but this run has augment.zoom=0.2; choose"):
        is_finished(str(tmp_path), resolved(override(tiny, ["augment.zoom=0.2"])))


def test_the_shares_of_texts_of_before_are_rounded(tiny, tmp_path):
    started(tmp_path, override(tiny, ["data.name_probability=0.1", "data.description_probability=0.9"]))
    before = json.loads((tmp_path / "config.json").read_text())
    del before["config"]["data"]["name_probability"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    # 1 - 0.9 is 0.09999999999999998.
    now = override(tiny, ["data.name_probability=0.1", "data.description_probability=0.9"])
    assert not is_finished(str(tmp_path), resolved(now))


def test_a_run_of_mixed_texts_goes_on(tiny, tmp_path):
    shares = ["data.name_probability=0.25", "data.description_probability=0.25", "data.alt_text_probability=0.5"]
    started(tmp_path, override(tiny, shares))
    assert not is_finished(str(tmp_path), resolved(override(tiny, shares)))


def test_a_run_is_extended_as_often_as_one_likes_and_never_shortened(tiny, tmp_path, capsys):
    started(tmp_path, tiny)
    path = tmp_path / "config.json"
    assert capsys.readouterr().out == ""
    written = path.read_text()
    write_config(str(tmp_path), resolved(override(tiny, ["log_every=7"])), ["Q1"], ["another"], 4)
    assert path.read_text() == written and capsys.readouterr().out == ""
    for first_step, steps in ((8, 15), (12, 20)):
        now = resolved(override(tiny, [f"steps={steps}"]))
        assert not is_finished(str(tmp_path), now)
        write_config(str(tmp_path), now, ["Q1"], ["another"], first_step)
    assert capsys.readouterr().out == (
        "extended from 10 to 15 steps: from step 9 on, learning rates are those of a run of 15 steps\n"
        "extended from 15 to 20 steps: from step 13 on, learning rates are those of a run of 20 steps\n"
    )
    content = json.loads(path.read_text())
    assert content["config"]["steps"] == 20 and content["data"] == "of the set"
    assert content["extended"] == [{"at_step": 8, "steps_before": 10}, {"at_step": 12, "steps_before": 15}]
    assert json.loads((tmp_path / "classes.json").read_text())["entity_ids"] == ["Q1", "Q2"]
    with pytest.raises(
        UserError, match=r"holds a run with steps=20, but this run has steps=19; choose another one, or"
    ):
        is_finished(str(tmp_path), resolved(override(tiny, ["steps=19"])))


@pytest.mark.parametrize("workdir", ["runs/a [1]", "runs/*", "gs://bucket/run?"])
def test_a_workdir_that_orbax_takes_for_a_pattern_is_refused_at_once(workdir):
    with pytest.raises(UserError, match=rf"^--workdir {re.escape(workdir)}: Orbax takes . for part of a pattern"):
        check_workdir(workdir)
