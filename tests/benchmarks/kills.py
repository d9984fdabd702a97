"""Kills the process group of mining at random moments of both jobs, runs it to the end, and compares every byte.

    make bench NAME=kills ARGS='--annotate 9 --commits 3 --assemble 8'

The models are a stage that takes ten milliseconds a row; the input is split into units of 50 rows, and two worker
processes work on each job. Kills in annotating are spread over its units, at random moments within them; those around a
commit come right before a record is written, when half of it is, and right after; those in assembly come at random
moments of what assembly takes, and whenever the set is finished before, what assembly wrote is deleted. The reference
is a run that nobody stops. Every file is compared, but of a commit record of annotations the name, which is all that
makes them count, and the outcomes of the ledger are summed.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import build_i2e as command
from pipeline.build_i2e import BuildI2EConfig, build_i2e
from pipeline.config import AnnotateConfig, AssembleConfig, ReadConfig, SelectLabelsConfig, UnitConfig, VocabularyConfig
from pipeline.engine import annotate_unit
from pipeline.runners import RunnerConfig
from pipeline.schema import Rejection, Row
from pipeline.storage.unit_commits import COMMITS_FOLDER

# Installed packages have a folder `tests` as well.
sys.path.append(str(Path(__file__).parents[1]))
fakes = importlib.import_module("fakes")
OUTPUT = "set"
AROUND = ("before", "amid", "after")
ASSEMBLED = ("i2e-*", "ledger", "provenance", "assembly", "*.json", "*.jsonl", "*.parquet")


class Slow(fakes.FakeLinker):
    """Takes its time; if it is told to, its worker kills the whole run at the next commit: one of `AROUND`."""

    def __init__(self, kill: str):
        super().__init__()
        self.kill = kill

    def setup(self) -> None:
        if self.kill:
            write_commit = annotate_unit.write_commit

            def killing(output: str, commit, outcomes) -> None:  # type: ignore[no-untyped-def]
                if self.kill == "amid":
                    path = Path(output, COMMITS_FOLDER, commit.file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text('{"annot')
                elif self.kill == "after":
                    write_commit(output, commit, outcomes)
                os.killpg(0, signal.SIGKILL)

            annotate_unit.write_commit = killing

    def run(self, rows: Sequence[Row]) -> list[Row | Rejection]:
        time.sleep(0.01 * len(rows))
        return super().run(rows)


def run(inputs: str, kill: str) -> None:
    command.model_stages = lambda models, config: [Slow(kill)]
    build_i2e(
        BuildI2EConfig(
            input=f"{inputs}/*.tar",
            kb=f"{inputs}/kb",
            ner_model=f"{inputs}/tagger.pt",
            encoder=f"{inputs}/encoder",
            output=OUTPUT,
            units=UnitConfig(unit_rows=50),
            annotate=AnnotateConfig(read=ReadConfig(rows_per_batch=10)),
            assemble=AssembleConfig(
                select=SelectLabelsConfig(keep_share=0.7), vocabulary=VocabularyConfig(min_images_per_entity=2)
            ),
            runner=RunnerConfig(workers=2),
        )
    )


class Run:
    """A run of the command in `folder`, a process group of its own."""

    def __init__(self, inputs: Path, folder: Path, kill: str = ""):
        folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--run", str(inputs), kill],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def until_assembly(self) -> bool:
        """Waits for the line that begins assembly; returns whether it came."""
        assert self._process.stdout is not None
        return any(line.startswith("assemble:") and "nothing to do" not in line for line in self._process.stdout)

    def finish(self) -> int:
        self._process.communicate()
        return self._process.returncode

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self.finish()


def write_inputs(folder: Path, num_rows: int) -> None:
    """Writes four tars; a row in eleven is dropped, and of the others two share a picture now and then."""
    folder.mkdir()
    fakes.write_knowledge_base(folder / "kb")
    fakes.write_encoder_stub(folder / "encoder")
    (folder / "tagger.pt").touch()
    for shard in range(4):
        rows = (
            fakes.pair(
                f"{shard}/{row}",
                "nothing" if row % 11 == 10 else f"E{row % 7} E{row % 3}",
                (shard * num_rows + row) // 2,
            )
            for row in range(num_rows // 4)
        )
        fakes.write_tar(folder / f"{shard}.tar", (member for row in rows for member in row))


def num_commits(folder: Path) -> int:
    commits = folder / OUTPUT / COMMITS_FOLDER
    return len(list(commits.iterdir())) if commits.exists() else 0


def kill_annotating(inputs: Path, folder: Path, kills: int, num_units: int, chance: random.Random) -> Iterator[str]:
    for kill in range(kills):
        running = Run(inputs, folder)
        while not running.is_over and num_commits(folder) < kill * num_units // (kills + 1):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 5 if kill == 0 else 1))  # the first one may come before any unit
        running.kill()
        yield f"annotating, with {num_commits(folder)} of {num_units} units finished"


def kill_around_commits(inputs: Path, folder: Path, kills: int, num_units: int) -> Iterator[str]:
    for kill in range(kills):
        status = Run(inputs, folder, AROUND[kill % len(AROUND)]).finish()
        assert status == -signal.SIGKILL, f"the run ended with {status} and was not killed"
        yield f"{AROUND[kill % len(AROUND)]} a commit, with {num_commits(folder)} of {num_units} records"


def kill_assembly(inputs: Path, folder: Path, kills: int, took_sec: float, chance: random.Random) -> Iterator[str]:
    output = folder / OUTPUT
    done = 0
    while done < kills:
        running = Run(inputs, folder)
        if running.until_assembly():
            after_sec = chance.uniform(0, took_sec)
            time.sleep(after_sec)
            if not (output / "manifest.json").exists():
                running.kill()
                done += 1
                commits = len(list(output.glob("i2e-*.commit.json")))
                yield f"assembling, {after_sec:.1f} s after it began, with {commits} shards committed"
                continue
        assert running.finish() == 0, "a run that nobody killed failed"
        for path in (path for pattern in ASSEMBLED for path in output.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def digests(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): ""
        if path.parent == folder / OUTPUT / COMMITS_FOLDER
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotate", type=int, default=9, help="kills in annotating")
    parser.add_argument("--commits", type=int, default=3, help="kills around a commit")
    parser.add_argument("--assemble", type=int, default=8, help="kills in assembly")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=2, metavar=("INPUTS", "KILL"), help="mine: what is killed")
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        inputs, whole, killed = (Path(name, part) for part in ("inputs", "whole", "killed"))
        write_inputs(inputs, args.rows)
        begin_sec = time.monotonic()
        running = Run(inputs, whole)
        assert running.until_assembly()
        assembly_sec = time.monotonic()
        assert running.finish() == 0, "the run that nobody stops failed"
        took_sec = time.monotonic() - assembly_sec
        print(f"without a kill: {assembly_sec - begin_sec:.0f} s, then assembly in {took_sec:.0f} s", flush=True)
        num_units = num_commits(whole)
        for happened in itertools.chain(
            kill_annotating(inputs, killed, args.annotate, num_units, chance),
            kill_around_commits(inputs, killed, args.commits, num_units),
            kill_assembly(inputs, killed, args.assemble, took_sec, chance),
        ):
            print(f"killed {happened}", flush=True)
        assert Run(inputs, killed).finish() == 0, "the run after the kills failed"
        found, expected = digests(killed), digests(whole)
        ledger = pq.read_table(killed / OUTPUT / "ledger", columns=["outcome"])["outcome"].to_pylist()
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    num_kills = args.annotate + args.commits + args.assemble
    print(f"{num_kills} kills: {len(expected)} files, {len(differing)} differ {differing[:5]}")
    outcomes = collections.Counter(ledger)
    print(f"ledger: {dict(outcomes)}, {outcomes.total()} of {args.rows} rows")
    sys.exit(bool(differing) or outcomes.total() != args.rows)


if __name__ == "__main__":
    main()
