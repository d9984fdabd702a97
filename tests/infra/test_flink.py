"""A real Flink cluster runs both jobs, survives the kill of a task manager, and ends with the bytes of one process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from tests.infra.conftest import ROOT, TIMEOUT_SEC, World, digests, environment


def processes(flink: ModuleType, cluster: dict[str, Any], word: str) -> list[psutil.Process]:
    found = []
    for one in flink.processes_of(cluster["folder"]):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if word in " ".join(one.cmdline()):
                found.append(one)
    return found


def parents(workers: list[psutil.Process]) -> Iterator[int]:
    for one in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield one.ppid()


def wait_for(condition: Callable[[], bool], *, limit_sec: float = TIMEOUT_SEC) -> None:
    deadline = time.monotonic() + limit_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.cluster
def test_flink_writes_the_bytes_of_one_local_worker(world: World, cluster: dict[str, Any]) -> None:
    printed = world.mine("flink", "--runner", "flink", "--job-endpoint", cluster["job_endpoint"])
    assert digests(world.folder / "flink") == digests(world.folder / "direct")
    assert "INFO" not in printed


@pytest.mark.cluster
def test_two_local_workers_write_the_bytes_of_one(world: World) -> None:
    world.mine("two", "--workers", "2")
    assert digests(world.folder / "two") == digests(world.folder / "direct")


@pytest.mark.cluster
def test_a_job_ends_by_itself_with_the_same_bytes_when_a_task_manager_is_killed(
    world: World, cluster: dict[str, Any], flink: ModuleType
) -> None:
    command = world.command("killed", "--runner", "flink", "--job-endpoint", cluster["job_endpoint"])
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        commits = world.folder / "killed" / "units" / "commits"
        wait_for(lambda: any(commits.glob("*.json")) or job.poll() is not None)
        assert job.poll() is None
        (victim, *_) = processes(flink, cluster, "TaskManagerRunner")
        workers = victim.children()  # of this job and, for some seconds, of the one before
        assert workers and all("mofi_flink_worker.py" in " ".join(one.cmdline()) for one in workers)
        victim.kill()
        wait_for(lambda: not set(workers) & set(flink.processes_of(cluster["folder"])), limit_sec=10)
        printed, _ = job.communicate(timeout=TIMEOUT_SEC)
    assert job.returncode == 0, printed
    assert digests(world.folder / "killed") == digests(world.folder / "direct")
    wait_for(lambda: len(processes(flink, cluster, "TaskManagerRunner")) == 2)  # another was started
    # Workers of a job that ended go with their task manager, or after some seconds; none has lost its parent.
    managers = {one.pid for one in processes(flink, cluster, "TaskManagerRunner")}
    assert set(parents(processes(flink, cluster, "mofi_flink_worker.py"))) <= managers


@pytest.mark.cluster
def test_a_second_cluster_in_the_same_folder_is_refused(cluster: dict[str, Any], flink: ModuleType) -> None:
    with pytest.raises(flink.ClusterError, match="is running already; stop it first: make flink-down"):
        flink.up(cluster["folder"], workers=1, rest_port=0, job_port=0)


# Kubernetes' own schemas, which do not know the operator's kind: of that, the template of its pods is checked.
VALIDATE = """
import sys, yaml, kubernetes_validate
deployment, *others = yaml.safe_load_all(open(sys.argv[1]))
pod = deployment["spec"]["podTemplate"]
pod["spec"]["containers"][0]["image"] = deployment["spec"]["image"]  # as the operator does
for resource in (pod, *others):
    kubernetes_validate.validate(resource, "1.30", strict=True)
    print(resource["kind"])
"""


@pytest.mark.cluster
def test_the_manifest_fits_the_schemas_of_kubernetes() -> None:
    uv = [sys.executable, "-m", "uv", "run", "--no-project", "--python", sys.executable]
    command = [*uv, "--with", "kubernetes-validate==1.37.0", "python", "-c", VALIDATE]
    done = subprocess.run([*command, str(ROOT / "infra/flink/kubernetes.yaml")], capture_output=True, text=True)
    assert done.stdout.split() == ["Pod", "Deployment", "Service"], done.stderr


def test_a_taken_port_and_no_workers_are_refused_before_anything_starts(flink: ModuleType, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(flink.ClusterError, match=f"--rest-port {port} is taken by another program; give another"):
            flink.up(tmp_path, workers=1, rest_port=port, job_port=0)
    with pytest.raises(flink.ClusterError, match="--workers is 0; give at least 1"):
        flink.up(tmp_path, workers=0, rest_port=0, job_port=0)
    assert list(tmp_path.iterdir()) == []


def test_missing_java_is_named(flink: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flink.shutil, "which", lambda program: None)
    with pytest.raises(flink.ClusterError, match="'java' is missing; install a JDK, version 17"):
        flink.install_jars()
