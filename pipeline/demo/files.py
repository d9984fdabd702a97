"""The corpus on disk: tars of pairs, the truth about them, all pictures, and the source of the knowledge base."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.compose import Pair
from pipeline.demo.config import CorpusConfig
from pipeline.demo.drawing import DrawnPicture, map_in_processes, web_copy
from pipeline.demo.entities import CorpusEntity

# What the base holds of an entity; the rest is words for texts.
_OF_BASE = ("id", "label", "description", "aliases", "types", "popularity", "links")


def write_pairs(pairs: Sequence[Pair], config: CorpusConfig) -> list[dict[str, Any]]:
    """Returns the shards written: tars of `{key}.png`, `{key}.txt`, `{key}.json`, with no times or owners in them."""
    jobs = [(p.picture.png, p.copy, f"{config.seed}/{p.picture.picture.image_id}/{p.copy}") for p in pairs]
    pngs = map_in_processes(web_copy, jobs, config.num_workers)
    shards = []
    for first in range(0, len(pairs), config.pairs_per_shard):
        path = config.output / f"pairs-{first // config.pairs_per_shard:05d}.tar"
        last = min(first + config.pairs_per_shard, len(pairs))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(first, last):
                key = key_of(row)
                for suffix, content in (
                    ("png", pngs[row]),
                    ("txt", pairs[row].caption.raw.encode()),
                    ("json", json.dumps({"key": key}).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        shards.append(
            {"file": path.name, "num_records": last - first, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        )
    return shards


def key_of(row: int) -> str:
    """Returns the key of a pair: "p0000123"."""
    return f"p{row:07d}"


_MENTION = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("name", pa.string()),
        ("entity_id", pa.string()),
        ("kind", pa.string()),
        ("ambiguous", pa.bool_()),
        ("has_context", pa.bool_()),
    ]
)
_STRAY = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("kind", pa.string())])


def write_truth(pairs: Sequence[Pair], path: Path) -> None:
    """Writes one row per pair: what the picture shows, the kind of noise, the half, and what the text names.

    Spans are of the text as `pipeline.sources.clean` gives it.
    """
    columns = {
        "key": pa.array([key_of(row) for row in range(len(pairs))]),
        "picture_entity_id": pa.array([p.picture.picture.entity_id for p in pairs]),
        "kind": pa.array([p.picture.picture.kind for p in pairs]),
        "noise": pa.array([p.noise for p in pairs]),
        "half": pa.array([p.half for p in pairs]),
        "mentions": pa.array(
            [[dataclasses.asdict(m) for m in p.caption.mentions] for p in pairs], type=pa.list_(_MENTION)
        ),
        "strays": pa.array([[dataclasses.asdict(s) for s in p.caption.strays] for p in pairs], type=pa.list_(_STRAY)),
        "spelling": pa.array([list(p.caption.spelling) for p in pairs], type=pa.list_(pa.string())),
    }
    pq.write_table(pa.table(columns), path)


def write_evaluation(pictures: Sequence[DrawnPicture], path: Path) -> None:
    """Writes every picture, those that no pair shows included."""
    rows = sorted(pictures, key=lambda p: p.picture.image_id)
    columns = {
        "image_id": [p.picture.image_id for p in rows],
        "image": [p.png for p in rows],
        "entity_id": [p.picture.entity_id for p in rows],
        "kind": [p.picture.kind for p in rows],
        "rendering": [p.picture.rendering for p in rows],
        "family": [p.picture.family for p in rows],
        "heldout_rendering": [p.picture.held_out_rendering for p in rows],
        "heldout_entity": [p.held_out_entity for p in rows],
    }
    pq.write_table(pa.table(columns), path)


def write_knowledge_base(entities: Iterable[CorpusEntity], path: Path) -> None:
    """Writes one JSON line per entity, by id, without the words for texts."""
    with open(path, "w", encoding="utf-8") as file:
        for entity in sorted(entities, key=lambda e: e.id):
            record = {name: getattr(entity, name) for name in _OF_BASE}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
