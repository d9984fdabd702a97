"""What the tests of several engines share: small shards of the demo, mined with the demo's models."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.infra.store import Store, running_store

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "runs" / "demo"
NUM_SHARDS, ROWS_PER_SHARD = 6, 60
TIMEOUT_SEC = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Small shards, and the folder of the sets that are mined from them."""

    folder: Path

    def command(self, output: str, *further: str, changed: Mapping[str, str] | None = None) -> list[str]:
        """Returns the command that mines a set into `output`, which is a name below `folder` or an address."""
        options = {
            "input": f"{self.folder}/pairs-*.tar",
            "kb": str(DEMO / "kb"),
            "ner-model": str(DEMO / "tagger" / "best-model.pt"),
            "encoder": str(DEMO / "models" / "bootstrap" / "encoder"),
            "output": output if "://" in output else str(self.folder / output),
            "min-images-per-entity": "1",
            "unit-rows": "0",  # each shard is a unit
            **(changed or {}),
        }
        flags = [part for name, value in options.items() for part in ("--" + name, value)]
        return [sys.executable, "-m", "pipeline.build_i2e", *flags, "--unit-rows", "0", *further]

    def mine(
        self,
        output: str,
        *further: str,
        changed: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        status: int = 0,
    ) -> str:
        """Mines a set, and returns what the command printed on both of its streams."""
        done = subprocess.run(
            self.command(output, *further, changed=changed),
            cwd=ROOT,
            env={**environment(), **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SEC,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


def environment() -> dict[str, str]:
    """Returns the environment of the commands: one thread a worker, as on a cluster."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # eight simulated devices
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **quiet}


def digests(folder: Path) -> dict[str, str]:
    """Returns the hashes of all files below `folder`, but for the records of the plan."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "units"
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The first rows of the demo's pairs in six shards, and in `direct` the set that one local worker makes of them."""
    for path in ("corpus/pairs-00000.tar", "kb/manifest.json", "tagger/best-model.pt", "models/bootstrap/encoder"):
        assert (DEMO / path).exists(), f"{DEMO / path} is missing; make it with: make demo"
    folder = tmp_path_factory.mktemp("cluster")
    with tarfile.open(DEMO / "corpus" / "pairs-00000.tar") as source:
        members = source.getmembers()
        for shard in range(NUM_SHARDS):
            with tarfile.open(folder / f"pairs-{shard}.tar", "w") as tar:
                start = 2 * ROWS_PER_SHARD * shard  # a picture and a text each
                for member in members[start : start + 2 * ROWS_PER_SHARD]:
                    tar.addfile(member, source.extractfile(member))
    made = World(folder=folder)
    made.mine("direct", "--workers", "1")
    return made


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with an empty bucket, for gs:// addresses."""
    with running_store(tmp_path_factory.mktemp("store")) as started:
        yield started


def load(path: Path, name: str) -> ModuleType:
    """Returns the program at `path` as a module; infra is no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def flink() -> ModuleType:
    """infra/flink/cluster.py."""
    return load(ROOT / "infra" / "flink" / "cluster.py", "cluster")


@pytest.fixture(scope="session")
def cluster(flink: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The state of a Flink cluster with two task managers; when it stops, no process of it is left."""
    folder = tmp_path_factory.mktemp("flink")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        patch.delenv("XLA_FLAGS", raising=False)
        state: dict[str, Any] = flink.up(folder, workers=2, rest_port=0, job_port=0)
    yield {**state, "folder": folder}
    assert flink.down(folder) >= 5  # supervisor, job manager, job server, two task managers
    assert flink.processes_of(folder) == []
