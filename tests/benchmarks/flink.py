"""The speed-up of a second task manager of Flink, beside that of a second bare process, with the demo's models.

Start-up is left out: time counts from the moment when each worker has finished a unit.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.infra.conftest import DEMO, ROOT, World, environment, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=12, help="input files, of which each is a unit")
    parser.add_argument("--rows", type=int, default=300, help="rows of a file")
    parser.add_argument("--rounds", type=int, default=2, help="how often all four are measured, in turn")
    arguments = parser.parse_args()
    cluster = load(ROOT / "infra" / "flink" / "cluster.py", "cluster")
    with tempfile.TemporaryDirectory() as name:
        world = World(folder=Path(name))
        write_shards(world.folder, arguments.units, arguments.rows)
        for number in range(arguments.rounds):
            rates = {}
            for workers in (1, 2):
                rates["bare", workers] = rate_of_processes(world, f"bare-{number}-{workers}", workers)
                rates["flink", workers] = rate_on_flink(world, f"flink-{number}-{workers}", workers, cluster)
            bare, flink = (rates[engine, 2] / rates[engine, 1] for engine in ("bare", "flink"))
            rows = {key: rate * arguments.rows for key, rate in rates.items()}
            print(
                f"rows/s: bare {rows['bare', 1]:.1f} and {rows['bare', 2]:.1f}, Flink {rows['flink', 1]:.1f} and "
                f"{rows['flink', 2]:.1f}; speed-up: bare {bare:.2f}, Flink {flink:.2f}; ratio {flink / bare:.2f}",
                flush=True,
            )


def write_shards(folder: Path, num_shards: int, num_rows: int) -> None:
    """Writes the first rows of the demo's pairs, over and over, as files of the same rows each."""
    with tarfile.open(DEMO / "corpus" / "pairs-00000.tar") as source:
        members = source.getmembers()[: 2 * num_rows]  # a picture and a text each
        contents = [source.extractfile(member).read() for member in members]
    for shard in range(num_shards):
        with tarfile.open(folder / f"pairs-{shard:03d}.tar", "w") as tar:
            for member, content in zip(members, contents, strict=True):
                with tempfile.TemporaryFile() as file:
                    file.write(content)
                    file.seek(0)
                    tar.addfile(member, file)


def rate(outputs: Sequence[Path], workers: int) -> float:
    """Returns finished units per second, from when `workers` of them were finished to the last."""
    times = sorted(path.stat().st_mtime for output in outputs for path in output.glob("units/commits/*.json"))
    return (len(times) - workers) / (times[-1] - times[workers - 1])


def rate_of_processes(world: World, output: str, workers: int) -> float:
    """Returns the rate of that many commands, which share the input evenly."""
    running = []
    for number in range(workers):
        files = f"{world.folder}/pairs-??[{'02468' if number == 0 else '13579'}].tar" if workers > 1 else None
        command = world.command(
            f"{output}-{number}", "--only-annotate", "--workers", "1", changed={"input": files} if files else None
        )
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL))
    assert not any([process.wait() for process in running])
    return rate([world.folder / f"{output}-{number}" for number in range(workers)], workers)


def rate_on_flink(world: World, output: str, workers: int, cluster) -> float:  # type: ignore[no-untyped-def]
    """Returns the rate of a cluster with that many task managers."""
    folder = world.folder / f"cluster-{output}"
    subprocess.run(
        [
            *(world.command("")[0], str(ROOT / "infra" / "flink" / "cluster.py"), "up", "--folder", str(folder)),
            *("--workers", str(workers), "--rest-port", "0", "--job-port", "0"),
        ],
        check=True,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        state = cluster.read_state(folder)
        world.mine(output, "--only-annotate", "--runner", "flink", "--job-endpoint", state["job_endpoint"])
    finally:
        cluster.down(folder)
    return rate([world.folder / output], workers)


if __name__ == "__main__":
    main()
