"""The speed-up of a second task manager of Flink, beside that of a second bare process, with the demo's models.

Start-up is left out: time counts from the moment when each worker has finished a unit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "runs" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=24, help="input files, of which each is a unit")
    parser.add_argument("--rows", type=int, default=400, help="rows of a file")
    parser.add_argument("--rounds", type=int, default=2, help="how often all four are measured, in turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, arguments.units, arguments.rows)
        for number in range(arguments.rounds):
            rates = {}
            for workers in (1, 2):
                rates["bare", workers] = rate_of_processes(folder, f"bare-{number}-{workers}", workers)
                rates["flink", workers] = rate_on_flink(folder, f"flink-{number}-{workers}", workers)
            bare, flink = (rates[engine, 2] / rates[engine, 1] for engine in ("bare", "flink"))
            rows = {key: rate * arguments.rows for key, rate in rates.items()}
            print(
                f"rows/s: bare {rows['bare', 1]:.1f} and {rows['bare', 2]:.1f}, Flink {rows['flink', 1]:.1f} and "
                f"{rows['flink', 2]:.1f}; speed-up: bare {bare:.2f}, Flink {flink:.2f}; ratio {flink / bare:.2f}",
                flush=True,
            )


def write_shards(folder: Path, num_shards: int, num_rows: int) -> None:
    """Writes the demo's pairs, in order and each once, as files of the same rows each: caches must not help."""
    sources = [tarfile.open(path) for path in sorted((DEMO / "corpus").glob("pairs-*.tar"))]
    members = [(source, member) for source in sources for member in source.getmembers()]
    num_members = 2 * num_rows  # a picture and a text each
    assert len(members) >= num_shards * num_members, f"the demo has {len(members) // 2} rows; take fewer"
    for shard in range(num_shards):
        with tarfile.open(folder / f"pairs-{shard:03d}.tar", "w") as tar:
            for source, member in members[shard * num_members : (shard + 1) * num_members]:
                tar.addfile(member, source.extractfile(member))


def rate(outputs: Sequence[Path], workers: int) -> float:
    """Returns finished units per second, from when `workers` of them were finished to the last."""
    times = sorted(path.stat().st_mtime for output in outputs for path in output.glob("units/commits/*.json"))
    return (len(times) - workers) / (times[-1] - times[workers - 1])


def annotate(folder: Path, output: str, *further: str, pattern: str = "pairs-*.tar") -> subprocess.Popen[bytes]:
    """Starts the job that annotates the files of `folder` that match, each of them a unit."""
    command = [sys.executable, "-m", "pipeline.build_i2e", "--only-annotate", "--unit-rows", "0"]
    command += ["--input", f"{folder}/{pattern}", "--output", f"{folder}/{output}", "--kb", str(DEMO / "kb")]
    command += ["--ner-model", str(DEMO / "tagger" / "best-model.pt")]
    command += ["--encoder", str(DEMO / "models" / "bootstrap" / "encoder"), *further]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    """Returns that of the commands: one thread a worker, as on a cluster."""
    one_thread = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **one_thread}


def rate_of_processes(folder: Path, output: str, workers: int) -> float:
    """Returns the rate of that many commands, which share the files evenly."""
    patterns = ["pairs-*.tar"] if workers == 1 else ["pairs-??[02468].tar", "pairs-??[13579].tar"]
    running = [
        annotate(folder, f"{output}-{number}", "--workers", "1", pattern=pattern)
        for number, pattern in enumerate(patterns)
    ]
    assert not any([process.wait() for process in running])
    return rate([folder / f"{output}-{number}" for number in range(workers)], workers)


def rate_on_flink(folder: Path, output: str, workers: int) -> float:
    """Returns the rate of a cluster with that many task managers."""
    of_cluster = folder / f"cluster-{output}"

    def cluster(*words: str) -> None:
        command = [sys.executable, str(ROOT / "infra" / "flink" / "cluster.py"), *words, "--folder", str(of_cluster)]
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)

    cluster("up", "--workers", str(workers), "--rest-port", "0", "--job-port", "0")
    try:
        endpoint = json.loads((of_cluster / "cluster.json").read_text())["job_endpoint"]
        assert annotate(folder, output, "--runner", "flink", "--job-endpoint", endpoint).wait() == 0
    finally:
        cluster("down")
    return rate([folder / output], workers)


if __name__ == "__main__":
    main()
