"""Measures the peak memory of assembly on Flink, at 1 x and 10 x rows, in workers and in the engine.

    make bench NAME=flink_memory ARGS='--rows 2000'

One task manager of a cluster of its own assembles tars of tiny pictures, one label a row, in units of 1,000 rows. The
memory of its processes is asked for every tenth of a second: of a Python worker, of which each stage of the job starts
one, the largest counts, and of the engine the Java process of the task manager. Each size has a new cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import assemble_memory
import psutil

from pipeline.config import AnnotateConfig, AssembleConfig, VocabularyConfig
from pipeline.jobs.assemble import assemble
from pipeline.runners import RunnerConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "infra" / "flink"))
cluster = importlib.import_module("cluster")
KINDS = {"worker": "mofi_flink_worker.py", "task manager": "TaskManagerRunner"}


def run(folder: Path, endpoint: str) -> None:
    assemble(
        assemble_memory.units_of(folder),
        str(folder / "set"),
        kb_path=str(folder / "kb"),
        hashes={},
        config=AssembleConfig(vocabulary=VocabularyConfig(min_images_per_entity=1)),
        annotate_config=AnnotateConfig(),
        runner=RunnerConfig(runner="flink", job_endpoint=endpoint),
    )


def measure(num_rows: int) -> dict[str, float]:
    """Returns the peak memory of a process of each of `KINDS`, in bytes, and the seconds of the job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assemble_memory.write_job(folder, num_rows)
        state = cluster.up(folder / "cluster", workers=1, rest_port=0, job_port=0)
        try:
            begin_sec = time.monotonic()
            command = [sys.executable, __file__, "--run", str(folder), state["job_endpoint"]]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as job:
                peaks = dict.fromkeys(KINDS, 0)
                while job.poll() is None:
                    for kind, size_bytes in memory_of(folder / "cluster"):
                        peaks[kind] = max(peaks[kind], size_bytes)
                    time.sleep(0.1)
            assert job.returncode == 0
        finally:
            cluster.down(folder / "cluster")
        assert json.loads((folder / "set" / "manifest.json").read_text())["num_rows"] == num_rows
    return {**peaks, "seconds": time.monotonic() - begin_sec}


def memory_of(folder: Path) -> list[tuple[str, int]]:
    found = []
    for one in cluster.processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(one.cmdline())
            found += [(kind, one.memory_info().rss) for kind, word in KINDS.items() if word in words]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="at 1 x, a multiple of 1000")
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "ENDPOINT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(Path(args.run[0]), args.run[1])
        return
    small, large = measure(args.rows), measure(10 * args.rows)
    for kind in KINDS:
        print(
            f"{kind}: {small[kind] / 1e6:.0f} MB at {args.rows} rows, {large[kind] / 1e6:.0f} MB at {10 * args.rows}, "
            f"ratio {large[kind] / small[kind]:.3f}"
        )
    print(f"the jobs took {small['seconds']:.0f} and {large['seconds']:.0f} s")


if __name__ == "__main__":
    main()
