"""Everything on gs://: the same bytes as on a local disk, and one copy of each model a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.infra.conftest import DEMO, World, digests
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
