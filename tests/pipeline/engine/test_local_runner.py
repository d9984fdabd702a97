"""Worker processes of the local runner: nothing is printed but results, and a killed one ends the job in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Squares 0 to 5 in two processes; 7 kills its worker.
SCRIPT = """
import os, signal, sys
from pipeline.runners import RunnerConfig, pipeline_options  # before Beam, as in every command
import apache_beam as beam
from pipeline.schema import UserError

def square(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number

try:
    with beam.Pipeline(options=pipeline_options(RunnerConfig(workers=2))) as job:
        (
            job
            | beam.Create([int(word) for word in sys.argv[1:]])
            | beam.Reshuffle()
            | "Square" >> beam.Map(square)
            | beam.combiners.ToList()
            | beam.Map(lambda numbers: print(sorted(numbers), flush=True))
        )
except UserError as error:
    print(f"error: {error}")
"""


def squares(*numbers: int) -> tuple[str, str]:
    """Returns what the script prints on its two streams."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, numbers)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_workers_print_nothing_of_their_own() -> None:
    assert squares(*range(6)) == ("[0, 1, 4, 9, 16, 25]\n", "")


def test_a_killed_worker_ends_the_job_in_one_line() -> None:
    assert squares(*range(9)) == (
        "error: a worker process was killed, perhaps for want of memory; run again, what is finished is kept\n",
        "",
    )
