import dataclasses
import errno
import json
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from pipeline.schema import UserError
from pipeline.storage.disk import disk_error, reporting_disk_errors
from trainer import loop as loop_module
from trainer import train as train_module
from trainer.configs.base import override
from trainer.data import open_corpus
from trainer.encoder import Encoder
from trainer.train import _description as description
from trainer.train import main, train

ROOT = pathlib.Path(__file__).parents[2]


def losses(workdir):
    return [json.loads(line)["loss"] for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def steps_of_events(workdir):
    """The steps of all values of the loss in the files of TensorBoard, however many they are."""
    events = []
    for path in pathlib.Path(workdir).glob("events.out.tfevents.*"):
        payloads = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        events += [Event.FromString(payload) for payload in payloads]
    return sorted(event.step for event in events if any(value.tag == "loss" for value in event.summary.value))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, write_set, tiny):
    """One uninterrupted run on one device: (set, workdir, experiment)."""
    directory = tmp_path_factory.mktemp("reference")
    data = write_set(directory / "set")
    train(tiny, data=data, workdir=str(directory / "run"), mesh="1x1")
    return data, directory / "run", tiny


@pytest.mark.parametrize("mesh", ["1x8", "4x2"])
def test_ten_steps_give_the_same_losses_on_every_mesh(reference, tmp_path, mesh, monkeypatch):
    data, workdir, tiny = reference
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(tiny, data=data, workdir=str(tmp_path), mesh=mesh)
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5)


def test_scanned_blocks_give_the_same_losses_on_every_mesh(reference, tmp_path, monkeypatch):
    data, _, tiny = reference
    experiment = override(tiny, ["scan_layers=true", "image.depth=2", "steps=2", "remat=dots", "optimizer.kind=adamw"])
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    for mesh in ("1x1", "2x2"):
        train(experiment, data=data, workdir=str(tmp_path / mesh), mesh=mesh)
    np.testing.assert_allclose(losses(tmp_path / "2x2"), losses(tmp_path / "1x1"), rtol=1e-5)


def test_the_losses_are_the_golden_ones(reference):
    golden = json.loads((pathlib.Path(__file__).parent / "golden_losses.json").read_text())
    np.testing.assert_allclose(losses(reference[1]), golden, rtol=1e-3)


def test_a_killed_run_resumes_bit_for_bit_and_on_another_mesh(reference, tmp_path, monkeypatch, capsys):
    data, workdir, tiny = reference

    class Killed(Exception):
        pass

    def killed_after(step_of_death):
        real = loop_module.Logs.write

        def write(self, step, metrics):
            if step > step_of_death:
                raise Killed
            real(self, step, metrics)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Logs, "write", killed_after(6))
        with pytest.raises(Killed):
            train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert len(losses(tmp_path)) == 6
    monkeypatch.setattr(train_module, "write_encoder", lambda *_: "")
    train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert "at step 4" in capsys.readouterr().out
    assert losses(tmp_path) == losses(workdir)
    assert steps_of_events(tmp_path) == list(range(1, 11))  # steps 5 and 6 once, though they were written twice

    # Back to step 8, and on where five classes are padded to eight rows.
    (tmp_path / "checkpoints" / "10").rename(tmp_path / "gone")
    train(tiny, data=data, workdir=str(tmp_path), mesh="4x2")
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), rtol=1e-5)


def test_the_encoder_knows_texts_and_classes(reference):
    encoder = Encoder.load(reference[1] / "encoder")
    assert encoder.has_text
    assert encoder.classifier.entity_ids == ("Q0", "Q1", "Q2", "Q3", "Q4")
    assert encoder.classifier.weights.shape == (5, encoder.embedding_dim)
    assert encoder.embed_texts(["red panda, a thing"]).shape == (1, 8)


def test_the_encoder_states_its_provenance(reference):
    provenance = json.loads((reference[1] / "encoder" / "encoder.json").read_text())["provenance"]
    assert provenance["config"] == json.loads(json.dumps(dataclasses.asdict(reference[2])))
    assert provenance["data"] == open_corpus(reference[0], reference[2]).fingerprint
    assert provenance["packages"]["jax"] == jax.__version__


def test_a_run_from_before_a_field_was_added_is_still_known(reference, tmp_path, capsys):
    data, workdir, tiny = reference
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    before = json.loads((tmp_path / "config.json").read_text())
    del before["config"]["scan_layers"], before["config"]["image"]["pre_norm"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with image.pre_norm=False, but this run has image.pre_norm=True"):
        train(override(tiny, ["image.pre_norm=true"]), data=data, workdir=str(tmp_path), mesh="1x1")


def test_a_damaged_encoder_is_written_again_from_the_last_checkpoint(reference, tmp_path, monkeypatch, capsys):
    data, workdir, tiny = reference
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "encoder" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    # A run that resumes does not read images to scale initial parameters.
    monkeypatch.setattr(train_module, "new_state", None)
    train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    assert "at step 10" in capsys.readouterr().out
    assert Encoder.load(tmp_path / "encoder").hash == Encoder.load(workdir / "encoder").hash
    assert losses(tmp_path) == losses(workdir)


LIKE_B16 = [
    "dtype=bfloat16",
    "remat=full",
    "scan_layers=true",
    "image.pre_norm=true",
    "image.pool=class_token",
    "image.stem_fold_px=0",
    "text.pool=last",
    "image.scale_init_by_data=false",
]
MIXED = ["data.description_probability=0.5", "data.alt_text_probability=0.5", "data.weight_column=similarities"]


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        (LIKE_B16, "2x2"),
        (["loss.contrastive_weight=0", "image.antialias=false"], "2x2"),
        (["loss.classification_weight=0", "image.pool=mean"], "2x2"),
        (["loss.sample_rate=0.5", "loss.sample_blocks=8", "micro_batches=2", *MIXED], "2x2"),
    ],
)
def test_every_kind_of_experiment_trains_and_is_saved(request, reference, tmp_path, changes, mesh):
    if "dtype=bfloat16" in changes:
        request.getfixturevalue("mixed_dtypes")
    experiment = override(reference[2], [*changes, "steps=2", "optimizer.kind=adamw"])
    path = train(experiment, data=reference[0], workdir=str(tmp_path), mesh=mesh)
    assert np.isfinite(losses(tmp_path)).all() and len(losses(tmp_path)) == 2
    encoder = Encoder.load(path)
    assert np.isfinite(encoder.embed_images(np.zeros((1, 8, 8, 3)))).all()
    assert (encoder.classifier is None) == ("loss.classification_weight=0" in changes)
    assert encoder.has_text == ("loss.contrastive_weight=0" not in changes)
    if encoder.has_text:
        assert np.isfinite(encoder.embed_texts(["red panda"])).all()


def test_a_finished_run_is_not_repeated(reference, capsys):
    data, workdir, tiny = reference
    before = (workdir / "encoder" / "encoder.json").stat().st_mtime_ns
    train(tiny, data=data, workdir=str(workdir), mesh="1x1")
    assert "already trained" in capsys.readouterr().out
    assert (workdir / "encoder" / "encoder.json").stat().st_mtime_ns == before


def test_a_finished_run_is_recognised_when_only_reading_and_logging_differ(reference, capsys):
    data, workdir, tiny = reference
    other = [
        "data.workers=3",
        "data.prefetch=1",
        "checkpoint_every=3",
        "log_every=7",
        "checkpoints_kept=1",
        "remat=full",
    ]
    train(override(tiny, [*other, "loss.tile_classes=1"]), data=data, workdir=str(workdir), mesh="1x1")
    assert "already trained" in capsys.readouterr().out


def test_checkpoints_without_their_config_are_refused(reference, tmp_path):
    data, workdir, tiny = reference
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints belongs to a run whose config.json is missing; put it back"):
        train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")


def test_a_workdir_of_another_config_is_refused(reference):
    data, workdir, tiny = reference
    with pytest.raises(UserError, match="holds a run with seed=0, but this run has seed=1; choose another"):
        train(dataclasses.replace(tiny, seed=1), data=data, workdir=str(workdir), mesh="1x1")


def test_classes_need_entities(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set", kind="pairs")
    with pytest.raises(UserError, match="holds raw pairs without entities; give an I2E set"):
        train(tiny, data=data, workdir=str(tmp_path / "run"), mesh="1x1")


def test_a_set_of_one_class_is_refused_where_classes_are_learned(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set")
    (first, *_) = (tmp_path / "set" / "vocabulary.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "set" / "vocabulary.jsonl").write_text(first)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    shards = [{**shard, "max_class_id": 0} for shard in manifest["shards"]]
    (tmp_path / "set" / "manifest.json").write_text(json.dumps({**manifest, "num_classes": 1, "shards": shards}))
    with pytest.raises(UserError, match="has only one; give a set of at least two entities as --data, or add --set"):
        train(tiny, data=data, workdir=str(tmp_path / "run"), mesh="1x1")
    assert open_corpus(data, override(tiny, ["loss.classification_weight=0"])).num_classes == 1


def test_a_set_of_another_format_version_is_refused(write_set, tiny, tmp_path):
    data = write_set(tmp_path / "set", version=9)
    with pytest.raises(UserError, match="has format version 9, this code reads 1"):
        train(tiny, data=data, workdir=str(tmp_path / "run"), mesh="1x1")


def test_a_start_that_was_refused_leaves_the_workdir_free_for_the_remedy(write_set, tiny, tmp_path):
    data, workdir = write_set(tmp_path / "set"), str(tmp_path / "run")
    with pytest.raises(UserError, match="use a smaller mesh"):
        train(tiny, data=data, workdir=workdir, mesh="4x4")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_batch_that_does_not_divide_is_refused(write_set, tiny, tmp_path):
    with pytest.raises(UserError, match=r"batch_size 16 does not divide over the 3 devices .* data.batch_size=15"):
        train(tiny, data=write_set(tmp_path), workdir=str(tmp_path / "run"), mesh="3x1")


def test_micro_batches_and_blocks_of_classes_that_do_not_divide_are_refused(tiny, tmp_path):
    for change, message in (
        ("micro_batches=3", r"over the 4 devices of --mesh 2x2 and 3 micro_batches; .* data.batch_size=12"),
        ("loss.sample_blocks=6", r"loss.sample_blocks 6 does not divide over the 4 devices .*=8"),
    ):
        experiment = override(tiny, [change, "loss.sample_rate=0.1"])
        with pytest.raises(UserError, match=message):
            train(experiment, data="none", workdir=str(tmp_path / "run"), mesh="2x2")


def test_a_mesh_larger_than_the_machine_is_refused(write_set, tiny, tmp_path):
    with pytest.raises(UserError, match=rf"needs 16 devices, but there are {len(jax.devices())}"):
        train(tiny, data=write_set(tmp_path), workdir=str(tmp_path / "run"), mesh="4x4")


def test_a_workdir_without_room_is_refused_before_the_first_step(write_set, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="has 0.00 GB free, but a checkpoint needs"):
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
    assert f"error: --workdir {workdir} lies below a file; choose another --workdir" in capsys.readouterr().err


def test_an_encoder_that_does_not_fit_on_the_disk_is_reported_and_does_not_count(reference, tmp_path):
    data, workdir, tiny = reference
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "encoder" / "encoder.json").unlink()
    (tmp_path / "encoder" / "image.jaxexport").unlink()
    (tmp_path / "encoder" / "image.jaxexport").symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match=rf"--workdir {tmp_path} is full; free some space"),
        reporting_disk_errors(tmp_path, option="--workdir"),
    ):
        train(tiny, data=data, workdir=str(tmp_path), mesh="1x1")
    with pytest.raises(ValueError, match="holds no finished encoder"):
        Encoder.load(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, "Permission denied", "/runs/mine/config.json.tmp"), "may not be written"),
        (OSError(errno.ENOENT, "No such file or directory", "/runs"), "cannot be created there"),
        (ValueError("writing zarr: Read-only file system [path]"), "is read-only"),
        (OSError(errno.ENOENT, "No such file or directory", "/runs/mine-data/vocabulary.jsonl"), None),
        (OSError(errno.EACCES, "Permission denied", "/data/runs/mine/shard"), None),
        (ValueError("No such file or directory: /data/shard"), None),
        (KeyError("pixels"), None),
    ],
)
def test_only_a_disk_error_of_the_workdir_is_reported_as_one(error, words):
    reported = disk_error(error, "/runs/mine", option="--workdir")
    assert reported is None if words is None else str(reported).startswith(f"--workdir /runs/mine {words}; ")


def test_help_shows_the_fields_of_the_named_config():
    text = description(["train", "--config", "multitask_b16", "--help"])
    assert "data.batch_size=32768: images per step, over all devices" in text
    assert "data.batch_size=128: images per step, over all devices" in description(["train", "--help"])


def test_processes_that_cannot_be_joined_are_reported_in_one_line(monkeypatch, capsys):
    base = ["train", "--config", "multitask_demo", "--data", "x", "--workdir", "y"]
    for options, message in (
        (["--coordinator", "host", "--num-processes", "2", "--process-id", "1"], "--coordinator host is not HOST:PORT"),
        (["--coordinator", "localhost:1"], "--coordinator, --num-processes and --process-id belong together"),
        (["--distributed"], "cannot join the other processes (jax.distributed.initialize() must be called before"),
    ):
        monkeypatch.setattr(sys, "argv", [*base, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_command_prints_one_line_and_exits_with_2():
    arguments = ["--config", "multitask_demos", "--data", "x", "--workdir", "y"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer.train", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: --config multitask_demos is unknown; the nearest is multitask_demo, and all are "
    )
    assert "Traceback" not in done.stderr
