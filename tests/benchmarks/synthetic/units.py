"""Annotated units for measurements of assembly: tars of small JPEGs, annotations and a knowledge base, all made up."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity
from pipeline.storage.annotation_format import ANNOTATION_SCHEMA
from pipeline.storage.unit_commits import short_hash
from pipeline.units import AnnotatedUnit, Part, Unit


def jpegs(number: int, side_px: int, seed: int) -> list[bytes]:
    """Returns different JPEGs of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (number, side_px, side_px, 3), np.uint8)
    found = []
    for pixels in noise:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def write_unit(
    folder: Path, number: int, pictures: Sequence[bytes], entity_ids: Sequence[str], similarities: Sequence[float]
) -> AnnotatedUnit:
    """Writes a tar and its annotations: each row is linked to one entity, and one more of its candidates is wrong."""
    name = f"part-{number:05d}"
    path, annotations = folder / f"{name}.tar", folder / "annotations" / f"{name}.parquet"
    annotations.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with tarfile.open(path, "w") as tar:
        for row, (picture, entity_id, similarity) in enumerate(zip(pictures, entity_ids, similarities, strict=True)):
            image_id = f"{number:05d}-{row:06d}"
            text = f"A picture of {entity_id} that someone took on a day of summer"
            start_byte = tar.offset + tarfile.BLOCKSIZE  # of the picture, behind its header
            for suffix, content in (("jpg", picture), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{image_id}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            candidates = [
                {"entity_id": one, "prior": 0.5, "score": score, "similarity": similarity, "case": "proper"}
                for one, score in ((entity_id, 0.9), ("E0", 0.05))
            ]
            linked = {
                "start": 13, "end": 13 + len(entity_id), "surface": entity_id, "finder": "dictionary",
                "mention_score": 0.5, "chosen": entity_id, "probability": 0.9, "candidates": candidates,
            }  # fmt: skip
            records.append({
                "image_id": image_id, "shard": path.name, "row": row, "text": text, "outcome": "annotated",
                "width": 8, "height": 8, "image_sha256": hashlib.sha256(picture).hexdigest(), "linked": [linked],
                "image_start_byte": start_byte, "image_bytes": len(picture),
            })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA), annotations, compression="zstd")
    return annotated_unit(path, annotations, len(records))


def annotated_unit(path: Path, annotations: Path, num_rows: int) -> AnnotatedUnit:
    """Returns the unit of the tar at `path` and its annotations."""
    content = annotations.read_bytes() if annotations.exists() else b""
    part = Part(path=str(path), file=path.name, fingerprint=path.stem)
    return AnnotatedUnit(
        unit=Unit(name=path.stem, parts=(part,)),
        path=str(annotations),
        num_rows=num_rows,
        key=path.stem,
        sha256=short_hash(hashlib.sha256(content).hexdigest()),
    )


def write_base(path: Path, num_entities: int) -> None:
    """Writes a knowledge base of E0, E1, …"""
    with KnowledgeBaseWriter(str(path)) as writer:
        for number in range(num_entities):
            writer.add(Entity(entity_id=f"E{number}", label=f"Entity {number}"))
        writer.commit(source="synthetic", source_sha256="0")
