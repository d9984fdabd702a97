"""Where the Beam jobs run: this machine, a Flink cluster, or Dataflow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.schema import UserError
from pipeline.storage.disk import disk_error, one_line

RUNNERS = ("direct", "flink", "dataflow")
# Beam's `DirectRunner` may try to download another runner's binary; this one needs nothing but Python.
_DIRECT_RUNNER = "pipeline.engine.local_runner.LocalRunner"
# Program on the PATH of every task manager that starts a worker; see infra/flink.
_FLINK_WORKER = "mofi_flink_worker.py"
_FLINK_WORKER_KEPT_MS = 20_000  # from one stage of a job to the next; each imports and loads the models
# The line of an error, maybe in a worker's traceback, that says that a store refused a request.
_REFUSED = re.compile(r"^.*(?:\b403\b|Forbidden|PermissionDenied|AccessDenied).*$", re.MULTILINE)
# Of Dataflow's workers; Beam's own options after `--` change them. All of these are ours.
_DATAFLOW_MACHINES = (
    "--machine_type=n2-standard-8",  # 4 GB a core: each has a process with its own models
    "--disk_size_gb=200",  # the image (20 GB), and one copy of the knowledge base
    "--autoscaling_algorithm=THROUGHPUT_BASED",
    "--max_num_workers=100",
    "--number_of_worker_harness_threads=1",  # of a process: the models use one core anyway
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """The engine and its resources."""

    runner: str = "direct"
    """direct (this machine), flink or dataflow. Beam's own options follow after `--`."""
    workers: int | None = None
    """Worker processes of the direct runner, each with models of its own; by default one for each core, but no more
    than there is work for."""
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
    worker_image: str | None = None
    """Container image of the workers, made by infra/dataflow/Dockerfile, for --runner dataflow."""
    dry_run: bool = False
    """Build the job that annotates, and submit nothing; for --runner dataflow."""


def num_workers(config: RunnerConfig, num_tasks: int | None = None) -> int:
    """Returns how many processes the direct runner starts.

    By default there is one for each core, but no more than `num_tasks`: pieces of work that are worth the seconds in
    which a process starts.
    """
    if config.workers is not None:
        return config.workers
    num_cores = len(os.sched_getaffinity(0))
    return num_cores if num_tasks is None else max(1, min(num_cores, num_tasks))


def pipeline_options(
    config: RunnerConfig, beam_args: tuple[str, ...] = (), *, num_tasks: int | None = None
) -> PipelineOptions:
    """Returns the options of one Beam job on the chosen engine.

    Args:
        config: the engine and its resources.
        beam_args: passed on as they are.
        num_tasks: see `num_workers`; None if that is not known.

    Raises:
        UserError: the runner is unknown, or lacks what it needs.
    """
    if config.runner not in RUNNERS:
        raise UserError(f"unknown runner {config.runner!r}; choose one of {', '.join(RUNNERS)}")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers is {config.workers}; give at least 1")
    if config.dry_run and config.runner != "dataflow":
        raise UserError(f"--dry-run is for --runner dataflow, and the runner is {config.runner}; leave it out")
    flags = []
    if config.runner == "direct":
        flags.append(f"--runner={_DIRECT_RUNNER}")
        workers = num_workers(config, num_tasks)
        if workers > 1:
            flags += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
            flags.append("--default_sdk_harness_log_level=WARNING")
    elif config.runner == "flink":
        if config.flink_master is None:
            flags += ["--runner=PortableRunner", f"--job_endpoint={config.job_endpoint}"]
        else:
            flags += ["--runner=FlinkRunner", f"--flink_master={config.flink_master}"]
        worker = json.dumps({"command": _FLINK_WORKER})
        flags += ["--environment_type=PROCESS", f"--environment_config={worker}"]
        flags.append(f"--environment_cache_millis={_FLINK_WORKER_KEPT_MS}")
    else:
        for name in ("project", "region", "temp_location", "worker_image"):
            _require(config, name)
        flags += ["--runner=DataflowRunner", f"--project={config.project}", f"--region={config.region}"]
        flags += [f"--temp_location={config.temp_location}", f"--sdk_container_image={config.worker_image}"]
        flags += _DATAFLOW_MACHINES
        if config.dry_run:
            flags.append("--dry_run=True")
    return PipelineOptions([*flags, *beam_args])  # of an option that is given twice, the last counts


def set_store_options(config: RunnerConfig, beam_args: tuple[str, ...]) -> None:
    """Makes this process read and write stores as whom, and how, the options of Beam say."""
    FileSystems.set_options(pipeline_options(config, beam_args))


def is_awaited(config: RunnerConfig, beam_args: tuple[str, ...]) -> bool:
    """Returns whether a job has run when its pipeline ends; one of a dry run, or that becomes a template, has not."""
    return not config.dry_run and not any(argument.startswith("--template_location") for argument in beam_args)


def split_beam_args(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Returns the command's own arguments, and those after `--`, which are Beam's."""
    if "--" not in arguments:
        return list(arguments), ()
    position = arguments.index("--")
    return list(arguments[:position]), tuple(arguments[position + 1 :])


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
        return UserError("--runner dataflow needs Google's client libraries: make setup-gcp")
    if type(error).__name__ == "FutureTimeoutError":  # of gRPC
        return UserError(
            "--runner flink: no job server answers at --job-endpoint; start a cluster with make flink-up, or name one "
            "that runs"
        )
    if isinstance(error, ValueError) and "validations errors" in str(error):
        return UserError(one_line(error))  # Beam's message about its own options
    if isinstance(error, ValueError) and "Unable to get filesystem" in str(error):
        return UserError(one_line(error))  # gs:// and similar without their libraries
    if isinstance(error, UserError):
        return UserError(re.sub(r" \[while running '.*'\]$", "", str(error)))
    message = re.search(r"UserError: (.*?)(?: \[while running|\n|$)", str(error))
    if message:
        return UserError(message.group(1))
    refused = _REFUSED.search(str(error)) if "://" in output else None
    if refused:
        return UserError(
            f"--output {output} may no longer be read or written ({refused[0].strip()}); restore its permissions, and "
            "run the same command again"
        )
    return disk_error(error, output)
