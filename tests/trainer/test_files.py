"""Files of a run on gs://, here a folder in its place; tests/infra/test_gs_runs.py has an emulated store."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from etils.epath import backend, gpath

from pipeline.schema import UserError
from trainer import checkpoints as checkpoints_module
from trainer import files as files_module
from trainer import skipped as skipped_module
from trainer.checkpoints import Checkpoints
from trainer.configs.experiments import get_experiment
from trainer.files import (
    absolute,
    append_line,
    check_store,
    normalised,
    read_lines,
    read_locally,
    reporting_store_errors,
    store_error,
    write_file,
    written_locally,
)
from trainer.skipped import SkippedRecords
from trainer.train import train


class FolderAsStore(backend._OsPathBackend):
    """Answers for gs:// from a folder; as in a store, files need no folder, and none is ever renamed to be written."""

    def __init__(self, folder):
        self.folder = folder
        self.written = []

    def at(self, path):
        return os.fspath(path).replace("gs:/", str(self.folder), 1) if os.fspath(path).startswith("gs:/") else path

    def open(self, path, mode):
        if "r" not in mode:
            self.written.append(os.fspath(path))
            os.makedirs(os.path.dirname(self.at(path)), exist_ok=True)
        return super().open(self.at(path), mode)

    def exists(self, path):
        return super().exists(self.at(path))

    def isdir(self, path):
        return super().isdir(self.at(path))

    def listdir(self, path):
        return super().listdir(self.at(path))

    def remove(self, path):
        self.written.append(f"-{path}")
        return super().remove(self.at(path))

    def copy(self, path, dst, overwrite):
        os.makedirs(os.path.dirname(self.at(dst)), exist_ok=True)
        self.written += [dst] if dst.startswith("gs:/") else []
        return super().copy(self.at(path), self.at(dst), overwrite)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "cache"))
    made = FolderAsStore(tmp_path / "store")
    monkeypatch.setattr(backend, "tf_backend", made)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", {made})
    return made


def test_an_encoder_is_written_on_a_disk_without_tensorflow():
    """It takes seconds. Imported before triton, TensorFlow would also abort the process, see pipeline/__init__.py."""
    script = "import sys, trainer.write_encoder; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_only_paths_on_a_disk_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("run") == str(tmp_path / "run") and absolute("gs://bucket/run") == "gs://bucket/run"


@pytest.mark.parametrize("place", ["gs://bucket/run", None])
def test_a_file_is_written_and_appended_to(place, store, tmp_path):
    path = f"{place or tmp_path}/log.jsonl"
    assert read_lines(path) == []
    write_file(path, "東京\u2028\n".encode())
    append_line(path, "two")
    with epath.Path(path).open("a") as file:
        file.write("cut o")
    assert read_lines(path) == ["東京\u2028", "two"]  # only "\n" ends a line
    write_file(path, b"new\n")
    assert read_lines(path) == ["new"]
    assert os.listdir((store.folder / "bucket" / "run") if place else tmp_path) == ["log.jsonl"]


def test_a_folder_on_a_disk_is_read_and_written_where_it_is(tmp_path):
    with read_locally(str(tmp_path)) as read, written_locally(str(tmp_path), ["whole"]) as written:
        assert read == written == str(tmp_path)


def test_a_folder_in_a_store_is_written_at_the_end_with_what_makes_it_whole_last(store, tmp_path):
    names = ["a", "b", "whole"]
    for name in (*names, "of others"):
        write_file(f"gs://bucket/run/encoder/{name}", b"old")
    store.written.clear()
    with written_locally("gs://bucket/run/encoder", names) as folder:
        for path in ("whole", "z", "below/y", "a"):
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            with open(os.path.join(folder, path), "w") as file:
                file.write(path)
        assert store.written == []
    at = "gs://bucket/run/encoder"
    removed = [f"-{at}/whole", f"-{at}/b", f"-{at}/a"]
    assert store.written == [*removed, f"{at}/a", f"{at}/below/y", f"{at}/z", f"{at}/whole"]
    with read_locally(at) as folder:
        found = {path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}
    assert found == {"a": "a", "z": "z", "whole": "whole", "of others": "old"}
    assert os.listdir(tmp_path / "cache") == []


def test_a_folder_that_is_not_finished_does_not_reach_the_store(store, tmp_path):
    write_file("gs://bucket/encoder/whole", b"old")
    with pytest.raises(ZeroDivisionError), written_locally("gs://bucket/encoder", ["whole"]):
        raise ZeroDivisionError
    assert epath.Path("gs://bucket/encoder/whole").read_text() == "old"
    assert os.listdir(tmp_path / "cache") == []


def status(text):
    return ValueError(f"{text}: Error reading gs://bucket/run/checkpoints/8 [http_response_code='503']")


@pytest.mark.parametrize(
    ("error", "is_of_store"),
    [
        (tf.errors.PermissionDeniedError(None, None, "403"), True),
        (tf.errors.AbortedError(None, None, "All 10 retry attempts failed"), True),
        (tf.errors.FailedPreconditionError(None, None, "libcurl code 6"), True),
        (tf.errors.DataLossError(None, None, "corrupted record"), False),
        (tf.errors.NotFoundError(None, None, "404"), False),
        (status("UNAVAILABLE"), True),
        (status("UNKNOWN"), True),
        (status("DATA_LOSS"), False),
        (status("NOT_FOUND"), False),
        (tf.errors.InvalidArgumentError(None, None, "no JPEG"), False),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"), False),
        (BrokenPipeError(errno.EPIPE, "the reader of the output has ended"), False),
        (type("ConnectionError", (OSError,), {"__module__": "requests.exceptions"})("refused"), True),
        (type("TransportError", (Exception,), {"__module__": "google.auth.exceptions"})("certificate"), True),
        (ValueError("the shapes differ"), False),
        (KeyError("params"), False),
    ],
)
def test_what_a_store_refuses_is_told_from_what_is_damaged(error, is_of_store):
    outer = RuntimeError("of the thread that wrote")
    outer.__cause__ = error
    for raised in (error, outer):
        assert store_error(raised) is (error if is_of_store else None)
        expected = UserError if is_of_store else type(raised)
        with pytest.raises(expected) as told, reporting_store_errors("gs://bucket/run", option="--workdir"):
            raise raised
        if is_of_store:
            assert str(told.value).startswith("--workdir gs://bucket/run cannot be read or written (")
            assert str(told.value).endswith("); check the address, your rights and the network")
        # A run on a disk has no store that could be at fault.
        with pytest.raises(type(raised)), reporting_store_errors("runs/mine", option="--workdir"):
            raise raised


def test_other_stores_and_missing_libraries_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"^--workdir s3://b/run is in a store that is not gs://; give a folder or an"):
        check_store("s3://b/run", option="--workdir")
    monkeypatch.setattr(files_module, "_is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"^--workdir gs://b/run: Google's client libraries are missing, .* make setup"):
        check_store("gs://b/run", option="--workdir")


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_bucket_of_folders_needs_a_package_of_its_own(hierarchical, monkeypatch):
    asked = []

    class Client:
        def get_bucket(self, name):
            asked.append(name)
            return types.SimpleNamespace(hierarchical_namespace_enabled=hierarchical)

    monkeypatch.setattr(files_module, "_is_installed", lambda name: name == "google.cloud.storage")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", types.SimpleNamespace(Client=Client))
    monkeypatch.setattr("google.cloud.storage", sys.modules["google.cloud.storage"], raising=False)
    if hierarchical:
        with pytest.raises(
            UserError, match=r"^--workdir gs://b/a/run: .* needs the package google-cloud-storage-contr"
        ):
            check_store("gs://b/a/run", option="--workdir")
    else:
        check_store("gs://b/a/run", option="--workdir")
    assert asked == ["b"]


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("gs://", ValueError("Bucket names must start and end with a number or letter.")),
        ("gs://b/run", OSError("Project was not passed and could not be determined from the environment.")),
    ],
)
def test_an_address_without_a_bucket_and_credentials_without_a_project_are_told(address, error, monkeypatch):
    class Client:
        def get_bucket(self, name):
            raise error

    monkeypatch.setattr(files_module, "_is_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", types.SimpleNamespace(Client=Client))
    monkeypatch.setattr("google.cloud.storage", sys.modules["google.cloud.storage"], raising=False)
    with pytest.raises(UserError, match=rf"^--workdir {address} cannot be used .*GOOGLE_CLOUD_PROJECT"):
        check_store(address, option="--workdir")


def test_a_cache_that_is_no_folder_is_named_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(files_module, "_is_installed", lambda name: True)
    with pytest.raises(UserError, match=f"^MOFI_CACHE {tmp_path}/file is no folder"):
        check_store("gs://b/run", option="--workdir")


def test_an_address_has_one_spelling():
    assert normalised("gs://bucket//run/./a/") == "gs://bucket/run/a" and normalised("a//b") == "a//b"


def test_a_run_has_one_address(monkeypatch):
    def refuse(workdir):
        raise UserError(workdir)

    monkeypatch.setattr("trainer.train.check_workdir", refuse)
    with pytest.raises(UserError, match="^gs://bucket/run$"):
        train(get_experiment("supervised_demo"), data="set", workdir="gs://bucket//run/", mesh="1x1")


def test_steps_are_those_of_folders_that_are_called_by_a_number(tmp_path):
    for name in ("12", "4", "old_8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "commit_success.txt").touch()
    (tmp_path / "file").touch()
    assert checkpoints_module.steps_in(str(tmp_path)) == [4, 12]
    assert checkpoints_module.steps_in(str(tmp_path / "file")) == checkpoints_module.steps_in("missing") == []


def test_a_store_that_does_not_answer_damages_no_checkpoint(monkeypatch):
    """The manager stands in for Orbax's, whose checkpoint cannot be read because of the network."""
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._workdir, checkpoints._directory = "gs://bucket/run", "gs://bucket/run/checkpoints"
    checkpoints._manager = types.SimpleNamespace(all_steps=lambda: [8])
    for name in ("check_architecture", "check_optimizer"):
        monkeypatch.setattr(checkpoints_module, name, lambda *_: None)
    moved = []
    monkeypatch.setattr(checkpoints, "_move_away", moved.append, raising=False)
    for word, raised in (("UNAVAILABLE", ValueError), ("DATA_LOSS", UserError)):

        def restore(*_, word=word):
            raise status(word)

        monkeypatch.setattr(checkpoints, "_restore", restore, raising=False)
        with pytest.raises(raised):
            checkpoints.restore_latest(types.SimpleNamespace(params={}, opt_state=()))
        assert moved == ([] if raised is ValueError else [8])


def test_each_process_lists_what_it_skipped_in_a_file_of_its_own_in_a_store(store, monkeypatch, capsys):
    read = types.SimpleNamespace(num_records=10, damage=lambda position: f"record {position} is damaged")
    epath.Path("gs://bucket/run/x").write_text("")
    epath.Path("gs://bucket/run/old-skipped.jsonl").write_text(json.dumps({"record": 1}) + "\n")
    of_process = []
    for number in (0, 1):
        monkeypatch.setattr(skipped_module.jax, "process_index", lambda number=number: number)
        of_process.append(SkippedRecords("gs://bucket/run", read, 2))
    of_process[0].note(np.asarray([3, 4]), np.asarray([4, 4]))
    of_process[1].note(np.asarray([7]), np.asarray([8]))
    names = {"skipped.jsonl": 3, "1-skipped.jsonl": 7}
    for name, position in names.items():
        (line,) = read_lines(f"gs://bucket/run/{name}")
        assert json.loads(line) == {"record": position, "damage": f"record {position} is damaged"}
    assert [each.count() for each in of_process] == [2, 2]
