"""What is made of a run: an encoder from any checkpoint, a longer run, another run that starts from it."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

from pipeline.schema import UserError
from trainer import train as train_module
from trainer import write_encoder as write_encoder_module
from trainer.configs.base import override
from trainer.encoder import Encoder
from trainer.init_from import read_source, with_source
from trainer.mesh import make_mesh
from trainer.optimizer import make_optimizer
from trainer.state import init_state, make_models
from trainer.train import train
from trainer.write_encoder import write_encoder


@pytest.fixture(scope="module")
def small(tiny):
    changes = ["optimizer.kind=adamw", "image.scale_init_by_data=false", "image.pool=class_token", "steps=4"]
    return override(tiny, [*changes, "checkpoint_every=2"])


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def initial(experiment, num_classes=5, mesh=(1, 1)):
    size = experiment.image.image_size_px
    optimizer = make_optimizer(experiment.optimizer, experiment.steps)
    images = np.zeros((1, size, size, 3), np.float32)
    return init_state(experiment, make_models(experiment), optimizer, make_mesh(*mesh), num_classes, images)


def flat(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_an_encoder_is_written_from_any_checkpoint(finished, tmp_path, monkeypatch, capsys):
    _, workdir = finished
    assert write_encoder(str(tmp_path / "last"), str(workdir), 4) == Encoder.load(workdir / "encoder").hash
    monkeypatch.setattr(sys, "argv", ["export", "--run", str(workdir), "--step", "2"])
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    write_encoder_module.main()
    earlier = Encoder.load(workdir / "encoder-2")
    assert f"wrote {workdir}/encoder-2 (hash {earlier.hash[:12]})" in capsys.readouterr().out
    assert earlier.hash != Encoder.load(workdir / "encoder").hash
    assert json.loads((workdir / "encoder-2" / "encoder.json").read_text())["provenance"]["step"] == 2
    source = read_source(str(workdir / "checkpoints" / "2"))
    np.testing.assert_array_equal(earlier.image_params["head/kernel"], source.params["image"]["head"]["kernel"])
    assert earlier.classifier.entity_ids == ("Q0", "Q1", "Q2", "Q3", "Q4")


def test_an_encoder_is_written_from_a_relative_path_too(finished, tmp_path, monkeypatch):
    _, workdir = finished
    monkeypatch.chdir(workdir.parent)
    assert write_encoder(str(tmp_path / "last"), workdir.name, 4) == Encoder.load(workdir / "encoder").hash


def test_a_step_without_checkpoint_is_refused_with_those_that_are_there(finished, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints has no checkpoint of step 3; it has those of steps 2, 4$"):
        write_encoder(str(tmp_path / "encoder"), str(finished[1]), 3)
    with pytest.raises(UserError, match=r"config.json is missing, so .* is no run of this version; give the --workdir"):
        write_encoder(str(tmp_path / "encoder"), str(tmp_path), 3)


def test_a_checkpoint_that_cannot_be_read_makes_no_encoder(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "2").rglob("_METADATA"):
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read \(.*\); if the run goes on"):
        write_encoder(str(tmp_path / "encoder"), str(tmp_path / "run"), 2)
    assert not (tmp_path / "encoder").exists()


def test_a_finished_run_is_extended(finished, small, tmp_path, capsys):
    data, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    longer = dataclasses.replace(small, steps=6)
    train(longer, data=data, workdir=str(tmp_path), mesh="1x1")
    said = capsys.readouterr().out
    assert "resumed" in said and "at step 4" in said
    assert "extended from 4 to 6 steps: from step 5 on, learning rates are those of a run of 6 steps" in said
    assert losses(tmp_path)[:4] == losses(workdir) and len(losses(tmp_path)) == 6
    provenance = json.loads((tmp_path / "encoder" / "encoder.json").read_text())["provenance"]
    assert provenance["config"]["steps"] == 6
    assert provenance["extended"] == [{"at_step": 4, "steps_before": 4}]
    train(longer, data=data, workdir=str(tmp_path), mesh="1x1")
    assert "already trained" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with steps=6, but this run has steps=4; choose another"):
        train(small, data=data, workdir=str(tmp_path), mesh="1x1")


def test_a_run_starts_from_another_with_its_tokenizer_and_its_classes_by_entity(
    finished, write_set, small, tmp_path, monkeypatch, capsys
):
    _, workdir = finished
    data = write_set(tmp_path / "set")
    lines = (tmp_path / "set" / "vocabulary.jsonl").read_text().replace("Q1", "Q11")
    (tmp_path / "set" / "vocabulary.jsonl").write_text(lines)
    first = []
    monkeypatch.setattr(train_module, "take_steps", lambda run, state, *_: first.append(state))
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    experiment = override(small, [f"init_from={workdir}/encoder", "image.image_size_px=12"])
    train(experiment, data=data, workdir=str(tmp_path / "run"), mesh="2x2")
    said = capsys.readouterr().out
    assert f"initial parameters from {workdir}/encoder: image tower: " in said
    assert "positions interpolated from 2x2 to 3x3; text tower: " in said
    assert "class vectors: 4 of 5 taken by entity id" in said
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (workdir / "tokenizer.json").read_bytes()
    given, taken = read_source(str(workdir)).params, flat(first[0].params)
    for name in ("image/stem/kernel", "text/table/embedding", "text/position", "log_class_scale"):
        np.testing.assert_allclose(taken[name], flat(given)[name], rtol=1e-6)
    vectors = given["class_vectors"][:5] / np.linalg.norm(given["class_vectors"][:5], axis=1, keepdims=True)
    np.testing.assert_allclose(taken["class_vectors"][[0, 2, 3, 4]], vectors[[0, 2, 3, 4]], rtol=1e-5)
    assert abs(taken["class_vectors"][1] - vectors[1]).max() > 0.1
    np.testing.assert_array_equal(taken["image/position"][:, 0], given["image"]["position"][:, 0])  # the class token's


def test_positions_are_interpolated_over_the_grid(finished, small):
    source = read_source(str(finished[1]))
    ramp = np.broadcast_to(np.asarray([0.0, 0.0, 1.0, 0.0, 1.0])[None, :, None], (1, 5, 16))  # token, then 2 x 2: x
    source.params["image"]["position"] = ramp.astype(np.float32)
    larger = override(small, ["image.image_size_px=16"])
    state, _ = with_source(initial(larger), source, ("Q0",) * 5)
    grid = np.asarray(state.params["image"]["position"])[0, 1:, 0].reshape(4, 4)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[0], (4, 4)), atol=1e-6)  # the same in every row
    assert (np.diff(grid[0]) > 0.1).all()  # and rising from left to right


def test_a_run_whose_layers_are_scanned_starts_from_one_whose_are_not(finished, small):
    source = read_source(str(finished[1]))
    state, _ = with_source(initial(override(small, ["scan_layers=true"])), source, ())
    block = state.params["image"]["blocks"]["layers"]["up"]["kernel"]
    np.testing.assert_array_equal(block[0], source.params["image"]["blocks"]["block_0"]["up"]["kernel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("image.width=32", r"image/blocks/block_0/attention/key/bias: \(16,\) there, \(32,\) here; .*, and \d+ more\)"),
        ("text.depth=2", r"text/blocks/block_1/.*: absent there, \(16,\) here"),
        ("image.patch_px=2", r"image/stem/kernel: \(32, 16\) there, \(8, 16\) here"),
        ("embedding_dim=4", r"image/head/kernel: \(16, 8\) there, \(16, 4\) here"),
    ],
)
def test_parameters_that_do_not_fit_are_named(finished, small, change, message):
    experiment = override(small, [change])
    with pytest.raises(UserError, match=rf"^init_from {finished[1]} does not fit this config \(.*{message}"):
        with_source(initial(experiment), read_source(str(finished[1])), ())


def test_what_is_neither_encoder_nor_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"init_from {tmp_path} is neither an encoder nor a run with a checkpoint nor"):
        read_source(str(tmp_path))
