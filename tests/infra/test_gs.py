"""Everything on gs://: the same bytes as on a local disk, and one copy of each model a machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.conftest import DEMO, ROOT, World, digests, environment
from tests.infra.store import BUCKET, LOCKED_BUCKET, Store

# These say where the input lay, and when it was written; labels have a key that depends on both.
RECORDS = re.compile(r".*\.commit\.json|manifest\.json|(assembly|units)/.*")


def on_gs(world: World, store: Store) -> dict[str, str]:
    """Uploads shards, knowledge base, tagger and encoder, and returns the options that name them."""
    if not store.names("kb/"):
        for shard in sorted(world.folder.glob("pairs-*.tar")):
            store.upload(shard, f"in/{shard.name}")
        store.upload(DEMO / "kb", "kb")
        store.upload(DEMO / "tagger" / "best-model.pt", "best-model.pt")
        store.upload(DEMO / "models" / "bootstrap" / "encoder", "encoder")
    return {
        "input": f"gs://{BUCKET}/in/pairs-*.tar",
        "kb": f"gs://{BUCKET}/kb",
        "ner-model": f"gs://{BUCKET}/best-model.pt",
        "encoder": f"gs://{BUCKET}/encoder",
    }


@pytest.mark.cluster
def test_a_set_on_gs_has_the_bytes_of_one_on_a_disk(world: World, store: Store, tmp_path: Path) -> None:
    variables = {**store.environment, "MOFI_CACHE": str(tmp_path)}
    options = on_gs(world, store)
    world.mine(f"gs://{BUCKET}/set", changed=options, variables=variables)
    local = {name: digest for name, digest in digests(world.folder / "direct").items() if not RECORDS.match(name)}
    remote = {name: digest for name, digest in store.digests("set").items() if not RECORDS.match(name)}
    assert remote == local
    # Knowledge base, its manifest alone, tagger and encoder: each once for this machine.
    assert len(list(tmp_path.glob("*.lock"))) == 4
    # A second run finds all finished.
    assert "6 finished before" in world.mine(f"gs://{BUCKET}/set", changed=options, variables=variables)


@pytest.mark.cluster
def test_a_bucket_that_may_not_be_written_is_an_error_in_one_line(world: World, store: Store, tmp_path: Path) -> None:
    variables = {**store.environment, "MOFI_CACHE": str(tmp_path)}
    options = on_gs(world, store)
    printed = world.mine(f"gs://{LOCKED_BUCKET}/set", changed=options, variables=variables, status=2)
    assert re.fullmatch(rf"error: --output gs://{LOCKED_BUCKET}/set may not be written .*403.*\n", printed), printed


@pytest.mark.cluster
def test_a_set_on_gs_trains_as_one_on_a_disk(world: World, store: Store, tmp_path: Path) -> None:
    store.upload(world.folder / "direct", "trained")
    # TensorStore has a variable of its own for the address; without one it would take the key of the test to Google.
    gcs = {"TENSORSTORE_GCS_HTTP_URL": store.url, "MOFI_CACHE": str(tmp_path / "cache")}
    fields = ["steps=4", "log_every=1", "data.batch_size=16", "data.workers=2", "optimizer.kind=adamw", "image.depth=1"]
    losses = {}
    for name, data in {"gs": f"gs://{BUCKET}/trained", "disk": str(world.folder / "direct")}.items():
        options = ["--config", "multitask_demo", "--data", data, "--workdir", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, "-m", "trainer.train", *options, *(word for one in fields for word in ("--set", one))],
            cwd=ROOT,
            env={**environment(), **gcs},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert len(losses["gs"]) == 4 and losses["gs"] == losses["disk"]
    # Pictures were not copied, but offsets of records and texts of classes.
    kept = {os.path.splitext(name)[1] or name[:6] for _, _, names in os.walk(tmp_path / "cache") for name in names}
    assert kept == {".index", "texts-"}
