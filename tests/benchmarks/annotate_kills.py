"""Kills the process group of annotating at random moments, runs it to the end, and compares every byte.

    make bench NAME=annotate_kills ARGS='--kills 8'

The models are a stage that takes ten milliseconds a row; the input is split into units of 50 rows, and two worker
processes annotate. The reference is a run that nobody stops. Records of what the last attempts were doing are left
out: they are gone at the end of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipeline.config import AnnotateConfig, ReadConfig, UnitConfig
from pipeline.jobs.annotate import annotate
from pipeline.jobs.plan import plan
from pipeline.row_stage import RowStage
from pipeline.runners import RunnerConfig
from pipeline.schema import Rejection, Row
from pipeline.sources.inputs import list_inputs


class Slow(RowStage):
    """Takes its time, and rejects a row in ten."""

    name = "slow"

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        time.sleep(0.01 * len(rows))
        return [
            row.rejected(stage=self.name, reason="tenth")
            if row.pair.row % 10 == 9
            else dataclasses.replace(row, width_px=16)
            for row in rows
        ]


def run(pattern: str, output: str) -> None:
    runner = RunnerConfig(workers=2)
    units = plan(list_inputs(pattern), output, config=UnitConfig(unit_rows=50), runner=runner)
    config = AnnotateConfig(read=ReadConfig(rows_per_batch=10))
    annotate(units, output, stages=lambda: [Slow()], fingerprint={}, config=config, runner=runner)


def start(pattern: str, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--run", pattern, str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def write_tar(path: Path, num_rows: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for row in range(num_rows):
            for suffix, content in ((".png", buffer.getvalue()), (".txt", f"text {row}".encode())):
                info = tarfile.TarInfo(f"{path.stem}/{row}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def num_finished(commits: Path) -> int:
    return len(list(commits.iterdir())) if commits.exists() else 0


def digests(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=2, metavar=("INPUT", "OUTPUT"), help="annotate: what is killed")
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in range(4):
            write_tar(folder / f"{shard}.tar", args.rows // 4)
        begin_sec = time.monotonic()
        if start(f"{folder}/*.tar", folder / "whole").wait() != 0:
            raise SystemExit("the run that nobody stops failed")
        whole_sec = time.monotonic() - begin_sec
        print(f"a run that nobody stops took {whole_sec:.1f} s", flush=True)
        num_units = len(list((folder / "whole" / "units" / "commits").iterdir()))
        commits = folder / "killed" / "units" / "commits"
        for kill in range(args.kills):
            process = start(f"{folder}/*.tar", folder / "killed")
            # Somewhere in the units after the last kill; before the first unit, and in a commit, by chance.
            while process.poll() is None and num_finished(commits) < kill * num_units // args.kills:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.3 if kill else whole_sec / 2))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed with {num_finished(commits)} of {num_units} units finished", flush=True)
        if start(f"{folder}/*.tar", folder / "killed").wait() != 0:
            raise SystemExit("the run after the kills failed")
        killed, whole = digests(folder / "killed"), digests(folder / "whole")
    differing = sorted(name for name in killed.keys() | whole.keys() if killed.get(name) != whole.get(name))
    print(f"{args.kills} kills: {len(whole)} files, {len(differing)} differ {differing[:5]}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
