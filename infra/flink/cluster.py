"""Starts and stops a Flink cluster with Beam's job server on this machine, without Docker.

    python infra/flink/cluster.py up --workers 2      (make flink-up WORKERS=2)
    python infra/flink/cluster.py down                (make flink-down)

The jars come from Maven, once, as `pom.xml` beside this file pins them. A supervisor keeps the processes running, as
Kubernetes would: a task manager that dies is started again. All processes carry the cluster's folder in an
environment variable, by which `down` finds every one of them, workers of jobs included.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
POM = Path(__file__).with_name("pom.xml")
WORKER = Path(__file__).with_name("mofi_flink_worker.py")  # found by its name: see pipeline/runners.py
CACHE = ROOT / ".cache" / "flink"
MARK = "MOFI_FLINK_CLUSTER"
STATE = "cluster.json"
_COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_READY_SEC = 180
_STOP_SEC = 10
_CHECK_SEC = 0.5
_RESTART_SEC = 1.0
# Flink and its serialisation look into packages that Java has closed since version 17.
_OPEN = [
    *(f"--add-exports=java.base/{name}=ALL-UNNAMED" for name in ("sun.net.util", "sun.nio.ch")),
    *(
        f"--add-opens=java.base/{name}=ALL-UNNAMED"
        for name in (
            "java.lang",
            "java.lang.reflect",
            "java.io",
            "java.net",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
            "sun.nio.ch",
        )
    ),
]
_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
appender.file.name = file
appender.file.type = Console
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{HH:mm:ss.SSS} %-5p %c{1} %m%n
"""


class ClusterError(Exception):
    """What the user can repair, in one line."""


def install_jars() -> Path:
    """Returns the folder of the jars that `pom.xml` names; downloads them when it has changed.

    Raises:
        ClusterError: Java or Maven is missing, or a download failed.
    """
    for program, package in (("java", "a JDK, version 17"), ("mvn", "Maven")):
        if shutil.which(program) is None:
            raise ClusterError(f"'{program}' is missing; install {package}")
    folder = CACHE / f"jars-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    print("flink-up: downloading the jars of Flink and of Beam's job server (160 MB), once", flush=True)
    unfinished = CACHE / f"{folder.name}.{uuid.uuid4().hex}.tmp"
    done = subprocess.run(
        ["mvn", "-q", "-B", "-f", str(POM), _COPY_JARS, "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        message = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stdout[-300:])
        raise ClusterError(f"Maven could not get the jars of {POM}: {message}")
    with contextlib.suppress(OSError):  # another process was quicker
        unfinished.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def up(folder: Path, *, workers: int, rest_port: int, job_port: int) -> dict[str, Any]:
    """Starts the cluster whose logs and state lie in `folder`; returns its state once it takes jobs.

    Args:
        folder: one cluster each.
        workers: task managers; each has one slot, and runs one worker process of a job.
        rest_port: of Flink's console and REST endpoint; 0 takes a free port.
        job_port: of Beam's job server; 0 takes a free port.

    Raises:
        ClusterError: it runs already, a port is taken, or the cluster does not start.
    """
    if workers < 1:
        raise ClusterError(f"--workers is {workers}; give at least 1")
    if processes_of(folder):
        raise ClusterError(f"a cluster of {folder} is running already; stop it first: make flink-down")
    rest_port, job_port = _port(rest_port, "--rest-port"), _port(job_port, "--job-port")
    jars = install_jars()
    state = {
        "workers": workers,
        "flink_master": f"localhost:{rest_port}",
        "job_endpoint": f"localhost:{job_port}",
        "jars": str(jars),
        "log_folder": str(folder / "log"),
    }
    shutil.rmtree(folder / "log", ignore_errors=True)
    for name in ("log", "conf", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "config.yaml").write_text(_flink_config(workers, rest_port, folder))
    (folder / "conf" / "log4j.properties").write_text(_LOG4J)
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
    with open(folder / "log" / "supervisor.log", "ab") as log:
        subprocess.run(
            [sys.executable, __file__, "supervise", "--folder", str(folder)],
            env=_environment(folder),
            cwd=ROOT,  # so that the relative paths of `make build-i2e` are the same here
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
    try:
        _wait_until_ready(state)
    except ClusterError:
        down(folder)
        raise
    return state


def down(folder: Path) -> int:
    """Stops every process of the cluster in `folder`; returns how many there were."""
    stopped = 0
    # A task manager may start a worker while it ends, so look again until none is left.
    while processes := processes_of(folder):
        stopped += len(processes)
        # The supervisor first: it would start the others again.
        for process in sorted(processes, key=lambda one: "supervise" not in _command(one)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if "supervise" in _command(process) else process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SEC)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_STOP_SEC)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    return stopped


def read_state(folder: Path) -> dict[str, Any]:
    """Returns what `up` returned for the cluster in `folder`."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def processes_of(folder: Path) -> list[psutil.Process]:
    """Returns the live processes of the cluster in `folder`: supervisor, Flink, job server, and workers of jobs."""
    return [
        process
        for process in psutil.process_iter(["environ", "status"])
        # A process that has died and that nobody has waited for has no environment on some systems only.
        if (process.info["environ"] or {}).get(MARK) == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def supervise(folder: Path) -> None:
    """Starts the processes of the cluster, and starts each again that ends; goes on in the background until `down`."""
    if os.fork():
        os._exit(0)
    os.setsid()
    state = read_state(folder)
    commands = _commands(folder, state)
    running: dict[str, subprocess.Popen[bytes]] = {}
    while True:
        for name, command in commands.items():
            if name in running and running[name].poll() is None:
                continue
            if name in running:
                print(f"{name} ended with {running[name].returncode}; starting it again", flush=True)
                time.sleep(_RESTART_SEC)
            with open(folder / "log" / f"{name}.log", "ab") as log:
                running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(_CHECK_SEC)


def _commands(folder: Path, state: dict[str, Any]) -> dict[str, list[str]]:
    conf = str(folder / "conf")
    # Beam's jars are on Flink's own class path: shipped with each job, a cancelled job would unload classes in use.
    java = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Dlog4j.configurationFile={conf}/log4j.properties"]
    java += [*_OPEN, "-cp", os.path.join(state["jars"], "*")]
    runtime = "org.apache.flink.runtime"
    job_host, job_port = state["job_endpoint"].split(":")
    commands = {
        "job-manager": [
            *(*java[:1], "-Xmx512m", *java[1:]),
            *(f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", conf),
        ],
        "job-server": [
            *(*java[:1], "-Xmx512m", *java[1:], str(POM.with_name("JobServer.java"))),
            *("--flink-master", state["flink_master"], "--flink-conf-dir", conf),
            *("--job-host", job_host, "--job-port", job_port, "--artifact-port", "0", "--expansion-port", "0"),
            *("--artifacts-dir", str(folder / "tmp" / "artifacts")),
        ],
    }
    for number in range(state["workers"]):
        commands[f"task-manager-{number}"] = [
            *(*java[:1], "-Xmx512m", "-XX:MaxDirectMemorySize=512m", *java[1:]),
            *(f"{runtime}.taskexecutor.TaskManagerRunner", "--configDir", conf),
        ]
    return commands


def _environment(folder: Path) -> dict[str, str]:
    """Returns the environment of the cluster: workers of jobs run in this Python, with the modules of this checkout."""
    environment = {**os.environ, MARK: str(folder)}
    for name, first in (("PATH", [str(WORKER.parent), os.path.dirname(sys.executable)]), ("PYTHONPATH", [str(ROOT)])):
        environment[name] = os.pathsep.join([*first, *filter(None, [os.environ.get(name)])])
    return environment


def _flink_config(workers: int, rest_port: int, folder: Path) -> str:
    """Returns Flink's config.yaml. The template beside this file has what does not depend on the machine."""
    template = POM.with_name("config.yaml").read_text()
    return template.format(
        workers=workers, rest_port=rest_port, rpc_port=_free_port(), tmp=folder / "tmp", log=folder / "log"
    )


def _wait_until_ready(state: dict[str, Any]) -> None:
    deadline = time.monotonic() + _READY_SEC
    job_host, job_port = state["job_endpoint"].split(":")
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            with urllib.request.urlopen(f"http://{state['flink_master']}/overview", timeout=5) as answer:
                slots = json.load(answer)["slots-total"]
            with socket.create_connection((job_host, int(job_port)), timeout=5):
                if slots == state["workers"]:
                    return
        time.sleep(_CHECK_SEC)
    raise ClusterError(f"the cluster is not ready after {_READY_SEC} s; see the logs in {state['log_folder']}")


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return command


def _port(port: int, option: str) -> int:
    if port == 0:
        return _free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise ClusterError(
                f"{option} {port} is taken by another program; give another, or 0 for a free one"
            ) from error
    return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start the cluster, and wait until it takes jobs"),
        ("down", "stop it, and the workers of its jobs"),
        ("supervise", "what up starts in the background"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--folder", type=Path, default=CACHE / "cluster", help="logs and state of the cluster")
        if name == "up":
            command.add_argument("--workers", type=int, default=2, help="task managers, each with one worker of a job")
            command.add_argument("--rest-port", type=int, default=8081, help="of Flink's console; 0: a free one")
            command.add_argument("--job-port", type=int, default=8099, help="of Beam's job server; 0: a free one")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    try:
        if arguments.command == "up":
            state = up(folder, workers=arguments.workers, rest_port=arguments.rest_port, job_port=arguments.job_port)
            print(
                f"flink-up: {state['workers']} task managers; console http://{state['flink_master']}, "
                f"job server {state['job_endpoint']}, logs {state['log_folder']}"
            )
        elif arguments.command == "down":
            print(f"flink-down: {down(folder)} processes stopped")
        else:
            supervise(folder)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
