"""Measures assembly's peak memory: per label at 1 x and 10 x, and with a vocabulary of millions of entities.

    make bench NAME=assemble_memory ARGS='--labels 20000 --entities 2000000 --labels-of-entities 20000000'

Each run is a process of its own, on the direct runner, whose in-process engine holds every shuffle. The first part
runs the whole job on tars of tiny pictures, one label a row. The second decides about made-up labels and writes the
vocabulary, in units of 10,000 labels; shards are not written, which takes the memory of one unit, and the knowledge
base is a stand-in, whose pages would be mapped from its file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic.units import annotated_unit, jpegs, write_base, write_unit

from pipeline.config import AnnotateConfig, AssembleConfig, VocabularyConfig
from pipeline.jobs import assemble as job
from pipeline.kb.store import Entity
from pipeline.runners import RunnerConfig
from pipeline.stages import build_vocabulary, write_shards
from pipeline.storage.digests import digests
from pipeline.storage.labels import End, Labels, labels_path, write_labels
from pipeline.units import AnnotatedUnit

ROWS = 1000  # of a unit in the first part
LABELS = 10_000  # of a unit in the second part
ENTITIES = 100


class AnyEntity:
    """A knowledge base that has every entity."""

    def entity(self, entity_id: str) -> Entity:
        return Entity(entity_id=entity_id, label=f"Name of {entity_id}", description="an entity that was made up")

    def resolve(self, entity_id: str) -> str:
        return entity_id


def run(units: Sequence[AnnotatedUnit], folder: Path, num_images_min: int) -> dict[str, Any]:
    return job.assemble(
        units,
        str(folder / "set"),
        kb_path=str(folder / "kb"),
        hashes={},
        config=AssembleConfig(vocabulary=VocabularyConfig(min_images_per_entity=num_images_min)),
        annotate_config=AnnotateConfig(),
        runner=RunnerConfig(workers=1),
    )


def whole_job(folder: Path, num_labels: int) -> None:
    """Writes pictures and annotations, or runs the job on them: two processes, so that only the job is measured."""
    if (folder / "units.json").exists():
        run(units_of(folder), folder, 1)
    else:
        write_job(folder, num_labels)


def write_job(folder: Path, num_labels: int) -> None:
    """Writes a knowledge base, and pictures with annotations in units of `ROWS` labels."""
    write_base(folder / "kb", ENTITIES)
    names = []
    for number in range(num_labels // ROWS):
        entity_ids = [f"E{row % ENTITIES}" for row in range(ROWS)]
        similarities = np.random.default_rng(number).uniform(0, 1, ROWS).tolist()
        pictures = jpegs(ROWS, 8, seed=number)
        names.append(write_unit(folder / "input", number, pictures, entity_ids, similarities).unit.name)
    (folder / "units.json").write_text(json.dumps(names))


def units_of(folder: Path) -> list[AnnotatedUnit]:
    """Returns the units that `write_job` wrote."""
    return [
        annotated_unit(folder / "input" / f"{name}.tar", folder / "input" / "annotations" / f"{name}.parquet", ROWS)
        for name in json.loads((folder / "units.json").read_text())
    ]


def vocabulary(folder: Path, num_labels: int, num_entities: int) -> None:
    """Decides about labels of `num_entities` entities, which become classes, and writes their vocabulary."""
    units = [
        annotated_unit(folder / f"unit-{number:05d}.tar", folder / "none", LABELS)
        for number in range(num_labels // LABELS)
    ]
    tasks = job._tasks(units, str(folder / "set"), None)
    if not (folder / "set").exists():
        for number, task in enumerate(tasks):
            path = labels_path(str(folder / "set"), task.annotated.unit.name)
            write_labels(path, made_up_labels(number, num_entities), key=task.labels_key)
        return
    build_vocabulary.KnowledgeBase = AnyKnowledgeBase  # type: ignore[attr-defined, assignment]
    write_shards.write_shard = no_shard  # type: ignore[assignment]
    job._missing_files = lambda *_: []
    job.write_tfds_metadata = lambda *_: None  # type: ignore[attr-defined]
    manifest = run(units, folder, 1)
    print(f"  {manifest['num_classes']} classes, threshold {manifest['min_similarity']:.4f}", file=sys.stderr)


class AnyKnowledgeBase:
    @staticmethod
    def open(path: str) -> AnyEntity:
        return AnyEntity()


def made_up_labels(number: int, num_entities: int) -> Labels:
    """Returns a label a row: half of frequent entities, half of each entity in its turn."""
    random = np.random.default_rng(number)
    frequent = random.zipf(1.3, LABELS) % num_entities
    in_turn = (number * LABELS + np.arange(LABELS)) // 2 % num_entities
    ids, entities = np.unique(np.where(np.arange(LABELS) % 2, in_turn, frequent), return_inverse=True)
    return Labels(
        rows=np.arange(LABELS, dtype=np.int32),
        mentions=np.zeros(LABELS, np.int32),
        entities=entities.astype(np.int32),
        entity_ids=pa.array([f"Q{one}" for one in ids.tolist()]),
        probabilities=np.full(LABELS, 0.9),
        similarities=random.uniform(0, 1, LABELS),
        verifier_scores=np.full(LABELS, np.nan),
        id_digests=digests([f"{number}-{row}" for row in range(LABELS)]),
        image_digests=random.integers(0, 2**63, (LABELS, 2), np.int64).astype(np.uint64),
    )


def no_shard(task: Any, labels: Labels, ends: np.ndarray, class_ids: np.ndarray, **_: Any) -> dict[str, Any]:
    kept = int(np.count_nonzero(ends == End.KEPT))
    outcomes = {"kept": kept, "dropped/select_labels/low_similarity": len(labels) - kept}
    return {"num_records": kept, "num_rows": len(labels), "num_labels": kept, "outcomes": outcomes, "sha256": "0" * 64}


def peak_bytes(*arguments: object) -> tuple[float, float]:
    """Returns the peak of the memory of this program run with these arguments, in bytes, and its seconds."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, check=True, text=True
    )
    return float(done.stdout.splitlines()[-1]), time.monotonic() - begin


@dataclasses.dataclass(frozen=True)
class Run:
    part: str
    labels: int
    entities: int


def measure(run_of: Run) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # make the input, then read it
            measured = peak_bytes("--part", run_of.part, "--folder", folder, "--labels", run_of.labels,
                                  "--entities", run_of.entities)  # fmt: skip
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=20_000, help="at 1 x of the first part, a multiple of 1000")
    parser.add_argument("--entities", type=int, default=200_000, help="of the second part; 0: leave it out")
    parser.add_argument("--labels-of-entities", type=int, default=2_000_000, help="of the second part")
    parser.add_argument("--part", choices=("job", "vocabulary"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        if arguments.part == "job":
            whole_job(arguments.folder, arguments.labels)
        else:
            vocabulary(arguments.folder, arguments.labels, arguments.entities)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    number = arguments.labels
    if number:
        small, _ = measure(Run("job", number, 0))
        large, seconds = measure(Run("job", 10 * number, 0))
        print(f"{number} labels {small / 1e6:.0f} MB, {10 * number} labels {large / 1e6:.0f} MB, {seconds:.0f} s")
        print(f"  {(large - small) / (9 * number):.0f} bytes a label (goal: at most 200)")
    number = arguments.labels_of_entities
    if arguments.entities:
        few, _ = measure(Run("vocabulary", LABELS, 100))
        peak, seconds = measure(Run("vocabulary", number, arguments.entities))
        print(
            f"{number} labels of {arguments.entities} entities: {peak / 1e9:.2f} GB, {seconds:.0f} s; one unit alone:"
        )
        print(f"  {few / 1e9:.2f} GB (goal for 20 M labels of 2 M entities: at most 4 GB)")


if __name__ == "__main__":
    main()
