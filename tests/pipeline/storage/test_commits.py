"""Fingerprints, commit records and engines."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import types
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, StandardOptions, WorkerOptions

from pipeline.runners import RunnerConfig, is_awaited, num_workers, pipeline_options, worker_error
from pipeline.schema import UserError
from pipeline.sources.inputs import list_inputs, with_fingerprint
from pipeline.storage import commits
from pipeline.storage.commits import commit, is_current, prepare_output, read_commit, uncommit
from pipeline.storage.fingerprints import code_fingerprint


def test_comments_and_docstrings_do_not_change_the_fingerprint_of_code_and_statements_do(tmp_path: Path) -> None:
    sources = {
        "a": 'def f():\n    """Doc."""\n    return 1\n',
        "b": "def f():\n\n    # why\n    return 1\n",
        "c": "def f():\n    return 2\n",
    }
    hashes = {}
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
        hashes[name] = code_fingerprint([str(tmp_path / name)])
    assert hashes["a"] == hashes["b"] != hashes["c"]


@pytest.mark.parametrize("name", ["x.parquet", "x[1]?*.parquet"])
def test_a_file_counts_only_with_a_record_that_fits_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"whole")
    assert read_commit(str(path)) is None
    commit(str(path), {"num_rows": 3})
    record = read_commit(str(path))
    assert record is not None and record["num_rows"] == 3 and record["size_bytes"] == 5
    path.write_bytes(b"cut")
    assert read_commit(str(path)) is None
    (tmp_path / f"{name}.commit.json").write_text('{"form')
    assert read_commit(str(path)) is None


@pytest.mark.parametrize("name", ["x.parquet", "x[1]?*.parquet"])
def test_a_file_without_its_record_does_not_count_whatever_is_written_later(tmp_path: Path, name: str) -> None:
    (tmp_path / "x1aa.parquet.commit.json").touch()  # which the name, as a pattern, would match
    path = tmp_path / name
    uncommit(str(path))  # there is none yet
    path.write_bytes(b"whole")
    commit(str(path), {})
    uncommit(str(path))
    path.write_bytes(b"other")  # of the same size
    assert read_commit(str(path)) is None
    assert (tmp_path / "x1aa.parquet.commit.json").exists()


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").touch()

    def refuse(path: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("pipeline.sources.inputs.sha256_of_file", refuse)
    message = r"--input .*a.tar cannot be read \(Permission denied\); repair or remove it, and run again"
    with pytest.raises(UserError, match=message):
        with_fingerprint(*list_inputs(str(tmp_path / "*.tar")))


def test_a_user_error_of_a_worker_comes_back_as_one() -> None:
    error = RuntimeError("Traceback ...\npipeline.schema.UserError: x is missing; make it [while running 'Find']")
    assert str(worker_error(error, "out")) == "x is missing; make it"
    assert str(worker_error(UserError("x; make it [while running 'Find']"), "out")) == "x; make it"


def test_a_store_that_refuses_in_the_middle_of_a_job_is_an_error_in_one_line() -> None:
    line = "google.api_core.exceptions.Forbidden: 403 PUT https://store/o: no permission"
    error = RuntimeError(f"Traceback ...\n  File x, line 4033\n{line}\n  more")
    assert str(worker_error(error, "gs://b/set")) == (
        f"--output gs://b/set may no longer be read or written ({line}); restore its permissions, and run the same "
        "command again"
    )
    assert worker_error(error, "out") is None  # a set on a disk
    assert worker_error(RuntimeError("line 4033"), "gs://b/set") is None


def test_each_engine_gets_its_options_and_beams_own() -> None:
    flink = pipeline_options(RunnerConfig(runner="flink", flink_master="host:8081"), ("--parallelism=4",))
    everything = flink.get_all_options()
    assert (everything["runner"], everything["flink_master"], everything["parallelism"]) == (
        "FlinkRunner",
        "host:8081",
        4,
    )
    near = pipeline_options(RunnerConfig(runner="flink"), ("--job_endpoint=other:1",)).get_all_options()
    assert (near["runner"], near["job_endpoint"]) == ("PortableRunner", "other:1")  # Beam's own options come last
    assert (near["environment_type"], near["environment_config"]) == (
        "PROCESS",
        '{"command": "mofi_flink_worker.py"}',  # found on the PATH of a task manager
    )
    dataflow = pipeline_options(
        RunnerConfig(runner="dataflow", project="p", region="r", temp_location="gs://b/t", worker_image="image:1"),
        ("--job_name=mine", "--max_num_workers=7"),
    )
    cloud = dataflow.view_as(GoogleCloudOptions)
    assert (cloud.project, cloud.region, cloud.temp_location, cloud.job_name) == ("p", "r", "gs://b/t", "mine")
    machines = dataflow.view_as(WorkerOptions)
    assert (machines.sdk_container_image, machines.machine_type, machines.disk_size_gb) == (
        *("image:1", "n2-standard-8"),
        200,
    )
    assert (machines.max_num_workers, machines.autoscaling_algorithm) == (7, "THROUGHPUT_BASED")
    plain = RunnerConfig()
    assert is_awaited(plain, ()) and not is_awaited(RunnerConfig(dry_run=True), ())
    assert not is_awaited(plain, ("--template_location=gs://b/t",))
    direct = pipeline_options(RunnerConfig(workers=2))
    assert direct.view_as(StandardOptions).runner.endswith("LocalRunner")
    assert direct.view_as(DirectOptions).direct_num_workers == 2


def test_a_record_holds_the_size_and_the_hash_of_the_bytes_as_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "FORMAT_VERSION", 6)
    packed = gzip.compress(b"abcde")  # Beam would unpack a file of such a name
    (tmp_path / "x.gz").write_bytes(packed)
    commit(str(tmp_path / "x.gz"), {"num_rows": 3})
    sha256 = hashlib.sha256(packed).hexdigest()
    expected = {"format_version": 6, "size_bytes": len(packed), "sha256": sha256, "num_rows": 3}
    assert json.loads((tmp_path / "x.gz.commit.json").read_text()) == expected


def test_a_file_is_current_with_a_record_of_the_same_fingerprint(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tar")
    assert not is_current(path, {"input": "a"})
    (tmp_path / "x.tar").write_bytes(b"whole")
    commit(path, {"fingerprint": {"input": "a"}})
    assert is_current(path, {"input": "a"})
    assert not is_current(path, {"input": "b"})
    commit(path, {"num_rows": 3})
    assert not is_current(path, {"input": "a"})


def test_a_record_or_a_set_of_another_format_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "FORMAT_VERSION", 6)
    (tmp_path / "x.tar").write_bytes(b"whole")
    commit(str(tmp_path / "x.tar"), {"format_version": 5})
    with pytest.raises(UserError) as refused:
        read_commit(str(tmp_path / "x.tar"))
    assert str(refused.value) == (
        f"{tmp_path}/x.tar.commit.json has format version 5, this code writes 6; choose another --output"
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 5}))
    with pytest.raises(UserError) as refused:
        prepare_output(str(tmp_path))
    assert str(refused.value) == (
        f"{tmp_path}/manifest.json has format version 5, this code writes 6; choose another --output"
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 6}))
    prepare_output(str(tmp_path))


def test_a_folder_is_created_and_needs_room_for_what_the_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=0, f_frsize=4096))  # nothing is free
    prepare_output(str(tmp_path / "set"))
    assert list((tmp_path / "set").iterdir()) == []
    with pytest.raises(UserError, match=r"set has 0.00 GB free, the run needs about 2.00 GB"):
        prepare_output(str(tmp_path / "set"), needed_bytes=2_000_000_000)


def test_a_store_is_asked_for_a_set_and_gets_an_object_that_is_deleted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(commits, "read_json", lambda path: calls.append(("read", path)))
    monkeypatch.setattr(commits, "write_bytes", lambda path, content: calls.append(("write", path, content)))
    monkeypatch.setattr(commits, "delete_files", lambda paths: calls.append(("delete", *paths)))
    prepare_output("store://bucket/set")
    assert calls == [
        ("read", "store://bucket/set/manifest.json"),
        ("write", "store://bucket/set/.writable", b"1"),
        ("delete", "store://bucket/set/.writable"),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("403\n denied"),
            "may not be written (403 denied); choose another --output, or check its permissions",
        ),
        (OSError(errno.ENOSPC, "no"), "is full; free some space"),
    ],
)
def test_a_store_that_takes_no_object_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(path: str, content: bytes) -> None:
        raise error

    monkeypatch.setattr(commits, "read_json", lambda path: None)
    monkeypatch.setattr(commits, "write_bytes", refuse)
    with pytest.raises(UserError) as refused:
        prepare_output("store://bucket/set")
    assert str(refused.value) == f"--output store://bucket/set {message}"


def test_there_is_a_worker_for_each_core_unless_there_is_less_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2, 3})  # a container may have some cores only
    assert num_workers(RunnerConfig()) == 3
    assert [num_workers(RunnerConfig(), tasks) for tasks in (0, 1, 2, 3, 9)] == [1, 1, 2, 3, 3]
    assert [num_workers(RunnerConfig(workers=8), tasks) for tasks in (2, 9)] == [8, 8]
    assert pipeline_options(RunnerConfig(), num_tasks=9).view_as(DirectOptions).direct_num_workers == 3
    alone = pipeline_options(RunnerConfig(), num_tasks=1).view_as(DirectOptions)
    assert (alone.direct_num_workers, alone.direct_running_mode) == (1, "in_memory")


def test_a_folder_whose_name_is_a_pattern_is_refused_since_it_would_match_others(tmp_path):
    with pytest.raises(UserError, match=r"contains a pattern character \(\*, \? or \[\); choose a folder without"):
        prepare_output(str(tmp_path / "set[1]"))
