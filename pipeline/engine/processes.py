"""Several worker processes on this machine. One that is killed costs the unit it was working on, and is replaced."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pipeline.engine.annotate_unit import UnitAnnotator
from pipeline.engine.attempts import EXIT_CODE
from pipeline.engine.devices import set_worker
from pipeline.schema import UserError
from pipeline.units import Unit

_DEATHS_MAX = 3  # workers that die one after the other, before any unit is finished


@dataclasses.dataclass(kw_only=True)
class _Worker:
    number: int
    process: SpawnProcess
    connection: Connection
    unit: Unit | None = None


def annotate_in_processes(
    units: Sequence[Unit], annotator: UnitAnnotator, *, num_workers: int, begin: Callable[[], None] | None = None
) -> None:
    """Annotates `units` in worker processes, which call `begin` and load the models once.

    Raises:
        UserError: a stage raised one, or workers die whatever they work on.
        RuntimeError: a stage raised another error.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    waiting = collections.deque(units)
    workers: list[_Worker] = []
    num_deaths = 0

    def start(number: int) -> None:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, annotator, number, begin), daemon=True)
        process.start()
        there.close()
        workers.append(_Worker(number=number, process=process, connection=here))

    try:
        for number in range(min(num_workers, len(units))):
            start(number)
        while waiting or any(worker.unit for worker in workers):
            for worker in workers:
                if worker.unit is None and waiting:
                    worker.unit = waiting.popleft()
                    with contextlib.suppress(OSError):  # a dead worker is seen below
                        worker.connection.send(worker.unit)
            ready = wait([worker.connection for worker in workers if worker.unit])
            for worker in [worker for worker in workers if worker.connection in ready]:
                try:
                    error = worker.connection.recv()
                except (EOFError, OSError):
                    num_deaths += 1
                    assert worker.unit is not None
                    waiting.appendleft(worker.unit)
                    workers.remove(worker)
                    _report_death(worker, num_deaths)
                    start(worker.number)
                    continue
                if error is not None:
                    raise error
                worker.unit = None
                num_deaths = 0
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()


def _report_death(worker: _Worker, num_deaths: int) -> None:
    worker.process.join()
    assert worker.unit is not None
    code = worker.process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    why = "; the machine may lack memory for --workers of them" if code == -signal.SIGKILL else ""
    message = f"a worker process {how} while it annotated unit {worker.unit.name}{why}"
    if num_deaths > _DEATHS_MAX:
        raise UserError(f"{message}; {num_deaths} died one after the other; finished units are kept, so run again")
    if code != EXIT_CODE:  # it said why
        print(f"warning: {message}; the unit is tried again", file=sys.stderr, flush=True)


def _work(
    connection: Connection, annotator: UnitAnnotator, number: int, begin: Callable[[], None] | None = None
) -> None:
    """Annotates the units that come, and answers each with None or the error."""
    set_worker(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of an interrupt the command's process hears too, and ends this one
    is_set_up = False
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):  # the command's process is gone
            return
        error: Any = None
        try:
            if not is_set_up:
                if begin is not None:
                    begin()
                annotator.setup()
                is_set_up = True
            annotator.annotate(unit)
        except UserError as user_error:
            error = user_error
        except Exception:
            error = RuntimeError(traceback.format_exc())
        connection.send(error)
