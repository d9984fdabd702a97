"""Where the Beam jobs run: this machine, a Flink cluster, or Dataflow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.schema import UserError
from pipeline.storage.disk import disk_error, one_line

RUNNERS = ("direct", "flink", "dataflow")
# Beam's `DirectRunner` may try to download another runner's binary; this class needs nothing but Python.
_DIRECT_RUNNER = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
# Program on the PATH of every task manager that starts a worker; see infra/flink.
_FLINK_WORKER = "mofi_flink_worker.py"
_FLINK_WORKER_KEPT_MS = 20_000  # from one stage of a job to the next; each imports and loads the models
_SHARDS_PER_JOB = {"direct": 2, "flink": 1000, "dataflow": 1000}
_SHARDS_PER_WORKER = 16  # if there are several on this machine: each job starts them, and they load the models again
Shard = TypeVar("Shard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """The engine and its resources."""

    runner: str = "direct"
    """direct (this machine), flink or dataflow. Beam's own options follow after `--`."""
    workers: int = 1
    """Worker processes of the direct runner; each loads the models."""
    shards_per_job: int | None = None
    """Input shards per Beam job: the most that a kill can lose. None: 2 on direct, 16 per worker if there are several,
    1000 elsewhere."""
    job_endpoint: str = "localhost:8099"
    """host:port of Beam's job server for --runner flink; the default is that of `make flink-up`."""
    flink_master: str | None = None
    """host:port of the REST endpoint of another Flink cluster, for --runner flink. Beam then starts a job server of its
    own on this machine, which it downloads (or `-- --flink_job_server_jar=FILE`)."""
    project: str | None = None
    """Google Cloud project, for --runner dataflow."""
    region: str | None = None
    """Google Cloud region, for --runner dataflow."""
    temp_location: str | None = None
    """gs:// folder for Beam's temporary files, for --runner dataflow."""


def pipeline_options(config: RunnerConfig, beam_args: tuple[str, ...] = ()) -> PipelineOptions:
    """Returns the options of one Beam job on the chosen engine; `beam_args` are passed on as they are.

    Raises:
        UserError: the runner is unknown, or lacks what it needs.
    """
    if config.runner not in RUNNERS:
        raise UserError(f"unknown runner {config.runner!r}; choose one of {', '.join(RUNNERS)}")
    if config.workers < 1:
        raise UserError(f"--workers is {config.workers}; give at least 1")
    if config.shards_per_job is not None and config.shards_per_job < 1:
        raise UserError(f"--shards-per-job is {config.shards_per_job}; give at least 1")
    flags = []
    if config.runner == "direct":
        flags.append(f"--runner={_DIRECT_RUNNER}")
        if config.workers > 1:
            flags += ["--direct_running_mode=multi_processing", f"--direct_num_workers={config.workers}"]
    elif config.runner == "flink":
        if config.flink_master is None:
            flags += ["--runner=PortableRunner", f"--job_endpoint={config.job_endpoint}"]
        else:
            flags += ["--runner=FlinkRunner", f"--flink_master={config.flink_master}"]
        worker = json.dumps({"command": _FLINK_WORKER})
        flags += ["--environment_type=PROCESS", f"--environment_config={worker}"]
        flags.append(f"--environment_cache_millis={_FLINK_WORKER_KEPT_MS}")
    else:
        for name in ("project", "region", "temp_location"):
            _require(config, name)
        flags += ["--runner=DataflowRunner", f"--project={config.project}", f"--region={config.region}"]
        flags.append(f"--temp_location={config.temp_location}")
    return PipelineOptions([*flags, *beam_args])  # of an option that is given twice, the last counts


def split_beam_args(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Returns the command's own arguments, and those after `--`, which are Beam's."""
    if "--" not in arguments:
        return list(arguments), ()
    position = arguments.index("--")
    return list(arguments[:position]), tuple(arguments[position + 1 :])


def shards_per_job(config: RunnerConfig) -> int:
    """Returns how many input shards one Beam job takes."""
    if config.shards_per_job is not None:
        return config.shards_per_job
    if config.runner == "direct" and config.workers > 1:
        return _SHARDS_PER_WORKER * config.workers
    return _SHARDS_PER_JOB[config.runner]


def job_by_job(command: str, shards: Sequence[Shard], config: RunnerConfig) -> Iterator[Sequence[Shard]]:
    """Returns the shards of one Beam job after the other; prints how many are done once each job has ended.

    A kill then loses the shards in flight and no others, on any engine.
    """
    step = shards_per_job(config)
    start_sec = time.monotonic()
    for first in range(0, len(shards), step):
        yield shards[first : first + step]
        done = min(first + step, len(shards))
        left_sec = (time.monotonic() - start_sec) / done * (len(shards) - done)
        print(f"{command}: {done}/{len(shards)} shards, about {left_sec:.0f} s left", flush=True)


def _require(config: RunnerConfig, name: str) -> None:
    if not getattr(config, name):
        flag = "--" + name.replace("_", "-")
        raise UserError(f"--runner {config.runner} needs {flag}; give it, or choose --runner direct")


@contextlib.contextmanager
def reporting_worker_errors(output: str) -> Iterator[None]:
    """Turns an error of a Beam job that the user can fix into a UserError; others pass.

    Raises:
        UserError: see `worker_error`.
    """
    try:
        yield
    except Exception as error:
        reported = worker_error(error, output)
        if reported is None:
            raise
        raise reported from error


def worker_error(error: BaseException, output: str) -> UserError | None:
    """Returns the user's view of an error out of a Beam job: a UserError of a stage, or a disk error; else None."""
    if isinstance(error, ImportError) and "apache_beam[gcp]" in str(error):
        return UserError("--runner dataflow needs Google's client libraries; pip install 'apache-beam[gcp]'")
    if isinstance(error, ValueError) and "validations errors" in str(error):
        return UserError(one_line(error))  # Beam's message about its own options
    if isinstance(error, ValueError) and "Unable to get filesystem" in str(error):
        return UserError(one_line(error))  # gs:// and similar without their libraries
    if isinstance(error, UserError):
        return UserError(re.sub(r" \[while running '.*'\]$", "", str(error)))
    message = re.search(r"UserError: (.*?)(?: \[while running|\n|$)", str(error))
    return UserError(message.group(1)) if message else disk_error(error, output)
