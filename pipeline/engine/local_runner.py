"""Beam's in-process runner with worker processes that are quiet, and whose death ends the job in one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from pipeline.schema import UserError

_WORKER = "{python} -m pipeline.engine.local_worker {runner}"


class LocalRunner(FnApiRunner):
    """Runs a job on this machine, in this process or in several."""

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        """Returns the result of the job.

        Raises:
            UserError: a worker process died.
        """
        environments = [
            environment
            for environment in pipeline_proto.components.environments.values()
            if environment.urn == python_urns.SUBPROCESS_SDK
        ]
        if not environments or threading.current_thread() is not threading.main_thread():
            return super().run_via_runner_api(pipeline_proto, options)
        for environment in environments:
            environment.payload = _WORKER.format(python=sys.executable, runner=os.getpid()).encode()
        signal.signal(signal.SIGUSR1, _worker_died)
        # What ends a connection to a worker ends the job too: it is reported once.
        print_error, threading.excepthook = threading.excepthook, lambda error: None
        logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
        try:
            return super().run_via_runner_api(pipeline_proto, options)
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            threading.excepthook = print_error


# Beam itself would wait for ever for a worker that died.
def _worker_died(number: int, frame: FrameType | None) -> None:
    raise UserError("a worker process was killed, perhaps for want of memory; run again, what is finished is kept")
