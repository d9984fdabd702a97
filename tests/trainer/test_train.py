import dataclasses
import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from trainer import train as train_module
from trainer.checkpoints import Checkpoints
from trainer.configs.base import UserError
from trainer.data import batches, make_example, make_tokenizer, open_corpus
from trainer.encoder import Encoder, Preprocessing
from trainer.train import main, train

ROOT = pathlib.Path(__file__).parents[2]


def losses(workdir):
    return [json.loads(line)["loss"] for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, write_set, tiny):
    """One uninterrupted run on one device: (set, workdir, experiment)."""
    directory = tmp_path_factory.mktemp("reference")
    data = write_set(directory / "set")
    train(tiny, data=data, workdir=str(directory / "run"), mesh="1x1")
    return data, directory / "run", tiny


@pytest.mark.parametrize("mesh", ["2x2", "1x8", "4x2"])
def test_ten_steps_give_the_same_losses_on_every_mesh(reference, tmp_path, mesh, monkeypatch):
    data, workdir, tiny = reference
    monkeypatch.setattr(train_module, "_save", lambda *_: "")
    train(tiny, data=data, workdir=str(tmp_path), mesh=mesh)
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5)


def test_the_losses_are_the_golden_ones(reference):
    golden = json.loads((pathlib.Path(__file__).parent / "golden_losses.json").read_text())
    np.testing.assert_allclose(losses(reference[1]), golden, rtol=1e-3)


def test_a_killed_run_goes_on_bit_for_bit_and_on_another_mesh(reference, tmp_path, monkeypatch, capsys):
    data, workdir, tiny = reference

    class Killed(Exception):
        pass

    def killed_after(step_of_death):
        real = train_module.Logs.write

        def write(self, step, metrics):
            if step > step_of_death:
                raise Killed
            real(self, step, metrics)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Logs, "write", killed_after(6))
        with pytest.raises(Killed):
            train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert len(losses(tmp_path)) == 6
    monkeypatch.setattr(train_module, "_save", lambda *_: "")
    train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert "at step 4" in capsys.readouterr().out
    assert losses(tmp_path) == losses(workdir)

    # Back to step 8, and on where five classes are padded to six rows.
    (tmp_path / "checkpoints" / "10").rename(tmp_path / "gone")
    train(tiny, data=data, workdir=str(tmp_path), mesh="2x2")
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5)


def test_the_encoder_knows_texts_and_classes(reference):
    encoder = Encoder.load(reference[1] / "encoder")
    assert encoder.has_text
    assert encoder.classifier.entity_ids == ("Q0", "Q1", "Q2", "Q3", "Q4")
    assert encoder.classifier.weights.shape == (5, encoder.embedding_dim)
    assert encoder.embed_texts(["red panda, a thing"]).shape == (1, 8)


def test_a_finished_run_is_not_repeated(reference, capsys):
    data, workdir, tiny = reference
    before = (workdir / "encoder" / "encoder.json").stat().st_mtime_ns
    train(tiny, data=data, workdir=str(workdir), mesh="1x1")
    assert "already trained" in capsys.readouterr().out
    assert (workdir / "encoder" / "encoder.json").stat().st_mtime_ns == before


def test_a_workdir_of_another_config_is_refused(reference):
    data, workdir, tiny = reference
    with pytest.raises(UserError, match=r"holds a run with seed=0, this one has 1; choose another --workdir"):
        train(dataclasses.replace(tiny, seed=1), data=data, workdir=str(workdir), mesh="1x1")


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(reference, tmp_path, monkeypatch):
    data, _, tiny = reference
    monkeypatch.setattr(
        train_module, "make_train_step", lambda *_: lambda state, batch: (state, {"loss": np.float32("nan")})
    )
    with pytest.raises(UserError, match="loss is nan at step 1; lower the learning rate"):
        train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert Checkpoints(str(tmp_path), 1).latest_step() is None


def stream(data, experiment, process=0, num_processes=1):
    corpus = open_corpus(data, experiment)
    preprocessing = Preprocessing(image_size_px=8)
    example = make_example(corpus, experiment, preprocessing, make_tokenizer(corpus, experiment))
    return batches(corpus, experiment, example, process, num_processes)


def equal(a, b):
    return all((a[name] == b[name]).all() for name in a)


def test_the_data_resume_exactly_though_batches_are_read_ahead(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    iterator = stream(data, tiny)
    next(iterator)
    position = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]  # crosses the end of the first epoch
    again = stream(data, tiny)
    again.set_state(position)
    assert all(equal(next(again), batch) for batch in expected)


def test_two_hosts_read_together_what_one_reads_alone(write_set, tiny, tmp_path):
    data = write_set(tmp_path)
    alone, first, second = stream(data, tiny), stream(data, tiny, 0, 2), stream(data, tiny, 1, 2)
    for _ in range(3):
        whole, top, bottom = next(alone), next(first), next(second)
        assert equal(whole, {name: np.concatenate([top[name], bottom[name]]) for name in whole})


def test_an_epoch_reads_every_picture_once(write_set, tiny, tmp_path):
    experiment = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, batch_size=8))
    iterator = stream(write_set(tmp_path), experiment)
    pictures = [row.tobytes() for _ in range(5) for row in next(iterator)["pixels"]]
    assert len(set(pictures)) == 40


def test_raw_pairs_group_by_text(write_set, tiny, tmp_path):
    experiment = dataclasses.replace(tiny, loss=dataclasses.replace(tiny.loss, classification_weight=0.0))
    batch = next(stream(write_set(tmp_path, kind="pairs"), experiment))
    same_tokens = (batch["tokens"][:, None] == batch["tokens"][None]).all(-1)
    same_group = batch["groups"][:, None] == batch["groups"][None]
    assert (same_group <= same_tokens).all()


def test_classes_need_entities(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set", kind="pairs")
    with pytest.raises(UserError, match="holds raw pairs without entities; give an I2E set"):
        train(tiny, data=data, workdir=str(tmp_path / "run"), mesh="1x1")


def test_a_set_of_another_format_version_is_refused(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set", version=9)
    with pytest.raises(UserError, match="has format version 9, this code reads 1"):
        train(tiny, data=data, workdir=str(tmp_path / "run"), mesh="1x1")


def test_a_set_that_is_damaged_is_told_before_training(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    shard = next(pathlib.Path(data).glob("*.tfrecord*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is damaged .*; build the set again"):
        open_corpus(data, tiny)
    shard.write_bytes(whole)
    (pathlib.Path(data) / "manifest.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match="that is no JSON .*; build it again"):
        open_corpus(data, tiny)


def test_a_start_that_was_refused_leaves_the_workdir_free_for_the_remedy(write_set, tiny, tmp_path):
    data, workdir = write_set(tmp_path / "set"), str(tmp_path / "run")
    wrong = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, vocabulary_size=10))
    with pytest.raises(UserError, match="--set text.vocabulary_size="):
        train(wrong, data=data, workdir=workdir, mesh="1x1")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_batch_that_does_not_divide_is_refused(write_set, tiny, tmp_path):
    with pytest.raises(UserError, match=r"batch_size 16 does not divide over the 3 devices .* data.batch_size=15"):
        train(tiny, data=write_set(tmp_path), workdir=str(tmp_path / "run"), mesh="3x1")


def test_a_mesh_larger_than_the_machine_is_refused(write_set, tiny, tmp_path):
    with pytest.raises(UserError, match=rf"needs 16 devices, there are {len(jax.devices())}"):
        train(tiny, data=write_set(tmp_path), workdir=str(tmp_path / "run"), mesh="4x4")


def test_a_workdir_without_room_is_refused_before_the_first_step(write_set, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="has 0.00 GB free, a checkpoint needs"):
        train(tiny, data=write_set(tmp_path), workdir=str(tmp_path / "run"), mesh="1x1")


def test_a_workdir_that_cannot_be_made_ends_with_one_line_and_code_2(write_set, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    workdir = f"{tmp_path}/file/run"
    options = {"--config": "supervised_demo", "--mesh": "1x1", "--data": write_set(tmp_path), "--workdir": workdir}
    arguments = [word for pair in options.items() for word in pair]
    arguments += ["--set", "data.batch_size=8", "--set", "steps=2"]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"error: --workdir {workdir} cannot be written (Not a directory)" in capsys.readouterr().err


def test_the_command_prints_one_line_and_exits_with_2():
    arguments = ["--config", "multitask_demos", "--data", "x", "--workdir", "y"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.train", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: no config 'multitask_demos'; the nearest is 'multitask_demo'"
    )
    assert "Traceback" not in done.stderr
