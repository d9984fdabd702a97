"""Times annotating when all of 20,000 units are finished, and counts the calls to the file system.

    make bench NAME=annotate_nothing_to_do

The units are synthetic: an input file, annotations and a commit record each, without content. Calls are those that
Python reports to an audit hook: opened files, listings, new and removed files. The size and time of each local input
are asked for as well, which a store gives with its listing. The baseline is one listing of the same folders.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

from pipeline.config import AnnotateConfig, UnitConfig
from pipeline.engine.annotate_unit import key_of
from pipeline.jobs.annotate import annotate
from pipeline.jobs.plan import plan
from pipeline.runners import RunnerConfig
from pipeline.sources.inputs import list_inputs
from pipeline.storage.unit_commits import ANNOTATIONS_FOLDER, COMMITS_FOLDER, UnitCommit
from pipeline.units import AnnotatedUnit

COUNTED = {"open", "os.listdir", "os.scandir", "os.remove", "os.mkdir", "os.rename", "glob.glob", "glob.glob/2"}
FINGERPRINT = {"kb": "1", "code": "2"}
calls: collections.Counter[str] = collections.Counter()


def count_call(event: str, arguments: tuple[object, ...]) -> None:
    # Opened directories, and files of Python itself, are no calls of ours.
    if event in COUNTED and not str(arguments[0]).endswith((".py", ".pyc")):
        calls[event] += 1


def run(pattern: str, output: str) -> tuple[AnnotatedUnit, ...]:
    """What `build_i2e` does up to the end of annotating."""
    units = plan(list_inputs(pattern), output, config=UnitConfig(unit_rows=0), runner=RunnerConfig(workers=1))
    return annotate(
        units,
        output,
        stages=lambda: [],
        fingerprint=FINGERPRINT,
        config=AnnotateConfig(),
        runner=RunnerConfig(workers=1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    num_units = parser.parse_args().units
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder) / "in", Path(folder) / "out"
        inputs.mkdir()
        for number in range(num_units):
            (inputs / f"{number:06d}.tar").touch()
        units = plan(
            list_inputs(f"{inputs}/*.tar"), str(output), config=UnitConfig(unit_rows=0), runner=RunnerConfig(workers=1)
        )
        for name in (ANNOTATIONS_FOLDER, COMMITS_FOLDER):
            (output / name).mkdir(parents=True)
        for unit in units:
            key = key_of(unit, FINGERPRINT)
            commit = UnitCommit(unit=unit.name, key=key, sha256="0" * 16, size_bytes=0, num_rows=0)
            (output / ANNOTATIONS_FOLDER / f"{unit.name}.parquet").touch()
            (output / COMMITS_FOLDER / commit.file).write_text("{}")

        begin_sec = time.perf_counter()
        for path in (inputs, output / ANNOTATIONS_FOLDER, output / COMMITS_FOLDER):
            os.listdir(path)
        listing_sec = time.perf_counter() - begin_sec
        sys.addaudithook(count_call)
        calls.clear()
        begin_sec = time.perf_counter()
        finished = run(f"{inputs}/*.tar", str(output))
        took_sec = time.perf_counter() - begin_sec
        counted = dict(calls)
    assert len(finished) == num_units
    print(
        f"{num_units} units, nothing to do: {took_sec:.2f} s ({took_sec / listing_sec:.0f} x three bare listings), "
        f"{sum(counted.values())} calls, {sum(counted.values()) / num_units:.5f} a unit: {counted}; beside them the "
        "size and time of each local input"
    )


if __name__ == "__main__":
    main()
