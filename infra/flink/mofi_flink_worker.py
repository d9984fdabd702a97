#!/usr/bin/env python3
"""Starts one Python worker of a Beam job; a Flink task manager runs it, by the options of `--runner flink`.

Beam's own boot program is a container's entry point. This one needs no container: it asks the task manager for the
addresses of its services, and becomes the worker. The modules come from the environment of this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
import time

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.job.utils import struct_to_dict
from apache_beam.runners.worker import sdk_worker_main

_SERVICES = ("control", "logging", "artifact", "status")
_PARENT_CHECK_SEC = 0.5


def main() -> None:
    """Runs a worker until its job, or the task manager, ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    arguments, _ = parser.parse_known_args()  # the endpoints that Beam also gives are those of the provision service
    _end_with(os.getppid())
    os.environ.update(_environment(arguments.id, arguments.provision_endpoint))
    sdk_worker_main.main([])


def _environment(worker_id: str, endpoint: str) -> dict[str, str]:
    """Returns the variables from which Beam's worker takes its id, the addresses of services, and its options."""
    with grpc.insecure_channel(endpoint) as channel:
        channel = grpc.intercept_channel(channel, _WorkerId(worker_id))
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = stub.GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest(), timeout=60).info
    found = {
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS": json.dumps(struct_to_dict(info.pipeline_options)),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    for service in _SERVICES:
        field = f"{service}_endpoint"
        if info.HasField(field):
            found[f"{service.upper()}_API_SERVICE_DESCRIPTOR"] = str(getattr(info, field))  # protobuf's text format
    return found


class _WorkerId(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Sends the worker's id with each call: the services of a task manager serve several workers."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id

    def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        """Calls `continuation` with the id."""
        return continuation(details._replace(metadata=[("worker_id", self._worker_id)]), request)


def _end_with(parent: int) -> None:
    """Kills this process once its parent has died: a killed task manager must not leave a worker that still writes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SEC)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
