"""Small pictures and corpora for the evaluation's tests."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evaluation.protocol import Context, Model, Provenance, Result, all_benchmarks
from evaluation.sets.renderings import Renderings

SCRIPT_TEXT = "<script>alert('hi')</script> a & b"
FAMILIES = {"noto": "noto", "noto-v1": "noto", "twemoji": "twemoji", "openmoji": "openmoji"}


class FakeClassifier:
    """Classes E0 to E3 in three dimensions."""

    entity_ids = ("E0", "E1", "E2", "E3")
    scale = 1.0

    def __init__(self):
        self.weights = np.eye(4, 3, dtype=np.float32)
        self.weights[3] = 1 / np.sqrt(3)


class FakeEncoder:
    """An encoder whose embedding is the mean colour; it counts the pictures that it embeds."""

    embedding_dim = 3

    def __init__(self, hash="abc", has_text=True, classifier=True, spoil=None):
        self.hash = hash
        self.has_text = has_text
        self.classifier = FakeClassifier() if classifier else None
        self.spoil = spoil
        self.num_embedded = 0

    def preprocess(self, picture):
        return np.asarray(picture.resize((4, 4)), np.float32) / 255

    def embed_images(self, images):
        self.num_embedded += len(images)
        embeddings = images.mean(axis=(1, 2)) + 1e-3
        if self.spoil is not None:
            embeddings[1] = self.spoil
        return embeddings

    def embed_texts(self, texts):
        return np.array([[len(text), text.count("1") + 1, 1] for text in texts], np.float32)


def png(seed: int, size_px: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(rows: list[tuple[str, str, str, bool, bool]], kinds: list[str] | None = None) -> Renderings:
    """Pictures from (image_id, entity_id, family, heldout_rendering, heldout_entity), in the order given."""
    return Renderings(
        image_ids=np.array([row[0] for row in rows]),
        images=[png(number) for number in range(len(rows))],
        entity_ids=np.array([row[1] for row in rows]),
        kinds=np.array(kinds or ["emoji"] * len(rows)),
        renderings=np.array([row[2] for row in rows]),
        families=np.array([row[2] for row in rows]),
        heldout_rendering=np.array([row[3] for row in rows]),
        heldout_entity=np.array([row[4] for row in rows]),
        data_hash="0" * 64,
    )


def write_evaluation(path: Path, num_entities: int = 6, *, num_unseen: int = 2) -> None:
    """Writes pictures of entities E0.. in four renderings, two of them held out; the last entities are unseen."""
    rows = []
    for entity in range(num_entities):
        for number, (rendering, family) in enumerate(FAMILIES.items()):
            rows.append(
                {
                    "image_id": f"i{entity:03d}{number}",
                    "image": png(entity * 10 + number),
                    "entity_id": f"E{entity}",
                    "kind": ("emoji", "flag", "logo")[entity % 3],
                    "rendering": rendering,
                    "family": family,
                    "heldout_rendering": rendering in ("twemoji", "openmoji"),
                    "heldout_entity": entity >= num_entities - num_unseen,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_demo(demo: Path) -> None:
    """Writes a demo of four pairs, mined, with no model: p0 kept right, p1 kept wrong, p2 a copy of p0, p3 dropped."""
    corpus, i2e = demo / "corpus", demo / "i2e"
    for folder in (corpus, i2e / "ledger", i2e / "annotations", demo / "steps", demo / "models" / "supervised"):
        folder.mkdir(parents=True)
    write_evaluation(corpus / "evaluation.parquet", 24, num_unseen=6)
    (corpus / "kb_source.jsonl").write_text(
        "".join(json.dumps({"id": f"E{n}", "label": f"<b>name {n}</b>"}) + "\n" for n in range(24))
    )
    shard = corpus / "pairs-00000.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(4):
            image = png(0 if number == 2 else number)
            member = tarfile.TarInfo(f"p{number}.png")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    mention = {"start": 0, "end": 4, "kind": "emoji", "ambiguous": False, "has_context": False}
    shared = {"picture_entity_id": "E0", "kind": "emoji", "noise": "named", "strays": [{"start": 20, "end": 24}]}
    truth = [
        {"key": f"p{n}", "half": "measure" if n == 1 else "fit", "mentions": mentions} | shared
        for n, mentions in enumerate(
            [[mention | {"entity_id": "E0"}], [mention | {"entity_id": "E1"}], [mention | {"entity_id": "E0"}], []]
        )
    ]
    pq.write_table(pa.Table.from_pylist(truth), corpus / "truth.parquet")
    link = {"start": 0, "end": 4, "surface": "name", "mention_score": 1.0, "finder": "tagger", "probability": 0.9}

    def linked(entity_id: str, similarity: float) -> list[dict]:
        candidate = {"entity_id": entity_id, "prior": 1.0, "similarity": similarity}
        return [link | {"chosen": entity_id, "by_text": entity_id, "candidates": [candidate]}]

    annotations = [
        {"image_id": "p0", "outcome": "annotated", "linked": linked("E0", 0.9)},
        {"image_id": "p1", "outcome": "annotated", "linked": linked("E1", 0.2)},
        {"image_id": "p2", "outcome": "annotated", "linked": linked("E0", 0.8)},
        {"image_id": "p3", "outcome": "dropped", "linked": []},
    ]
    for number, row in enumerate(annotations):
        row["text"] = f"{SCRIPT_TEXT} {number}"
        row["image_sha256"] = hashlib.sha256(png(0 if number == 2 else number)).hexdigest() if number < 3 else None
    pq.write_table(pa.Table.from_pylist(annotations), i2e / "annotations" / "pairs-00000.parquet")
    outcomes = [
        ("kept", None, None, ["E0"]),
        ("kept", None, None, ["E1"]),
        ("dropped", "deduplicate", "same picture and label", []),
        ("dropped", "find_mentions", "no mention <script>", []),
    ]
    ledger = [
        {"image_id": f"p{n}", "shard": shard.name, "row": n, "outcome": o, "stage": s, "reason": r, "entity_ids": e}
        for n, (o, s, r, e) in enumerate(outcomes)
    ]
    pq.write_table(pa.Table.from_pylist(ledger), i2e / "ledger" / "part-0.parquet")
    starved = {"entity_id": "E1", "kept": 1, "low_similarity": 7}
    (i2e / "funnel.json").write_text(json.dumps({"entities_most_rejected_by_similarity": [starved]}))
    (demo / "steps" / "corpus.json").write_text(json.dumps({"step": "corpus", "seconds": 12.5}))
    (demo / "models" / "supervised" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "loss": 5 - n / 10, "images_per_second": 300}) + "\n" for n in range(20))
    )


def clouds(
    num_rows: int, dim: int, num_classes: int, noise: float = 1.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around the means of classes that overlap, with an offset that all share."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((num_classes, dim)) + 1
    labels = np.arange(num_rows) % num_classes
    rows = means[labels] + noise * rng.standard_normal((num_rows, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model, data and options as text, for a benchmark."""

    model: Model
    data_dir: Path
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def run(self, benchmark: str) -> Result:
        """Returns what a benchmark measures."""
        found = all_benchmarks()[benchmark]
        return found.run(Context(model=self.model, data_dir=self.data_dir), found.parse(self.options))


def sources(result: Result) -> dict[str, Provenance]:
    """Returns what a result rests on by the name of the set; of a set of several parts, the last one."""
    return {one.name: one for one in result.data}
