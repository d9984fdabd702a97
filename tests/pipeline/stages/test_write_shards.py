"""The shard of a unit, with ledger and provenance: written, left alone or copied from an earlier set."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import tarfile
import types
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import MembersConfig, StoreConfig
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import UserError
from pipeline.shard_format import ShardReader
from pipeline.stages import write_shards as module
from pipeline.stages.build_vocabulary import Classes
from pipeline.stages.write_shards import (
    ShardTask,
    WriteShards,
    copy_earlier_shard,
    finished_shard,
    shard_fingerprint,
    write_shard,
)
from pipeline.storage.annotation_format import ANNOTATION_SCHEMA
from pipeline.storage.digests import digests, write_digest_map
from pipeline.storage.labels import End, Labels, labels_of_annotations
from pipeline.units import AnnotatedUnit, Part, Unit
from tests.fakes import png, write_tar

MEMBERS = MembersConfig(image_member="picture,png")
PICTURES = {
    "a": png(1), "b": png(2), "c": png(3), "d": b"no picture", "e": png(5, size_px=32), "f": png(6), "g": png(7),
}  # fmt: skip
LINKS = {"a": ["E2", "E1"], "b": ["E1"], "c": ["E1"], "d": ["E1"], "e": ["E1"], "f": [], "g": ["E3", "E2"]}
# a: E2 E1, b, c, d, e: E1, g: E3 E2. The picture of c changed, and that of d is broken.
ENDS = np.array([0, 0, End.LOW_SIMILARITY, 0, 0, 0, 0, End.DUPLICATE_IMAGE], np.int8)
CLASS_IDS = np.array([1, 0, 0, 0, 0, 0, -1, 1])


def mention(entity_id: str, similarity: float) -> dict[str, Any]:
    candidates = [{"entity_id": entity_id, "similarity": similarity}]
    return {"surface": entity_id, "chosen": entity_id, "probability": 0.75, "candidates": candidates}


def write_unit(folder: Path, *, has_places: bool = False) -> AnnotatedUnit:
    """Writes a tar and its annotations; f was dropped, and the picture of c is not the annotated one any more.

    Annotations say where the pictures lie in the tar if `has_places`.
    """
    members = [((f"{key}.picture", picture), (f"{key}.txt", b"x")) for key, picture in PICTURES.items()]
    write_tar(folder / "u.tar", [one for both in members for one in both])
    with tarfile.open(folder / "u.tar") as tar:
        places = {key: tar.getmember(f"{key}.picture").offset_data if has_places else None for key in PICTURES}
    records = []
    for row, key in enumerate(PICTURES):
        picture = PICTURES[key] if key != "c" else b"before"
        is_dropped = key == "f"
        records.append({
            "image_id": f"id-{key}", "shard": "u.tar", "row": row, "text": f"Text of {key}",
            "outcome": "dropped" if is_dropped else "annotated", "stage": "validate" if is_dropped else None,
            "reason": "image_too_small" if is_dropped else None, "image_sha256": hashlib.sha256(picture).hexdigest(),
            "image_start_byte": places[key], "image_bytes": len(PICTURES[key]),
            "fields": [("url", "here")] if key == "e" else [],
            "linked": [mention(one, 0.25 + 0.25 * place) for place, one in enumerate(LINKS[key])],
        })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA), folder / "u.parquet")
    part = Part(path=str(folder / "u.tar"), file="u.tar", fingerprint="f")
    return AnnotatedUnit(
        unit=Unit(name="u", parts=(part,)),
        path=str(folder / "u.parquet"),
        num_rows=7,
        key="k",
        sha256=hashlib.sha256((folder / "u.parquet").read_bytes()).hexdigest()[:16],
    )


@pytest.fixture
def task(tmp_path: Path) -> ShardTask:
    for name in ("ledger", "provenance"):
        (tmp_path / "set" / name).mkdir(parents=True)
    return ShardTask(annotated=write_unit(tmp_path), index=3, output=str(tmp_path / "set"), labels_key="of labels")


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """What is counted, by "stage/name"."""
    counted: collections.Counter[str] = collections.Counter()

    def counter(stage: str, name: str) -> Any:
        return types.SimpleNamespace(inc=lambda number=1: counted.update({f"{stage}/{name}": number}))

    monkeypatch.setattr(module, "Metrics", types.SimpleNamespace(counter=counter))
    return counted


def labels_of(task: ShardTask) -> Labels:
    return labels_of_annotations(pq.read_table(task.annotated.path))


def written(task: ShardTask, ends: np.ndarray = ENDS, *, fingerprint: str = "mine", **store: Any) -> dict[str, Any]:
    return write_shard(
        task,
        labels_of(task),
        ends,
        CLASS_IDS,
        members=MEMBERS,
        store=StoreConfig(**store),
        fingerprint=fingerprint,
    )


def test_files_are_called_after_the_unit_and_the_shard_after_its_number(task: ShardTask) -> None:
    assert task.shard_path == f"{task.output}/i2e-train.tfrecord-00003"
    assert task.labels_path == f"{task.output}/assembly/labels/u.arrow"
    assert task.ledger_path == f"{task.output}/ledger/u.parquet"
    assert task.provenance_path == f"{task.output}/provenance/u.parquet"


def test_rows_with_a_kept_label_are_records_and_lost_pictures_end_their_rows(task: ShardTask) -> None:
    ends = ENDS.copy()
    record = written(task, ends, max_side_px=16)
    assert ends.tolist() == ENDS.tolist()  # the caller's stay as they are
    first, second, third = ShardReader(task.shard_path)
    # By entity, and not by mention: E1 is the second one of a.
    assert (first.image_id, first.entity_ids, first.class_ids, first.similarities) == (
        *("id-a", ("E1", "E2"), (0, 1), (0.5, 0.25)),
    )
    assert (first.image, first.text, first.width_px, first.height_px) == (PICTURES["a"], "Text of a", 16, 16)
    assert (first.fields, second.fields) == ((), (("url", "here"),))
    assert (second.image_id, second.width_px, second.height_px) == ("id-e", 16, 16)
    assert Image.open(io.BytesIO(second.image)).size == (16, 16)
    assert (third.image_id, third.entity_ids) == ("id-g", ("E3",))
    ledger = pq.read_table(task.ledger_path).to_pylist()
    assert [(row["image_id"], row["outcome"], row["reason"]) for row in ledger] == [
        ("id-a", "kept", None),
        ("id-b", "dropped", "low_similarity"),
        ("id-c", "failed", "image_changed"),
        ("id-d", "dropped", "broken_image"),
        ("id-e", "kept", None),
        ("id-f", "dropped", "image_too_small"),
        ("id-g", "kept", None),
    ]
    provenance = pq.read_table(task.provenance_path).to_pylist()
    assert [(row["image_id"], row["entity_id"], row["class_id"]) for row in provenance] == [
        *(("id-a", "E1", 0), ("id-a", "E2", 1), ("id-e", "E1", 0), ("id-g", "E3", -1)),
    ]
    shard = Path(task.shard_path)
    assert record == json.loads(Path(f"{shard}.commit.json").read_bytes())
    assert {name: value for name, value in record.items() if name != "format_version"} == {
        "size_bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
        "num_records": 3,
        "num_rows": 7,
        "num_labels": 4,
        "min_class_id": -1,
        "max_class_id": 1,
        "most_entities": 2,
        "outcomes": {
            "kept": 3,
            "dropped/select_labels/low_similarity": 1,
            "failed/write_shards/image_changed": 1,
            "dropped/write_shards/broken_image": 1,
            "dropped/validate/image_too_small": 1,
        },
        "beside": {
            "index": 4 * 8,
            "ledger": Path(task.ledger_path).stat().st_size,
            "provenance": Path(task.provenance_path).stat().st_size,
        },
        "fingerprint": None,  # the picture of c may be the right one again
    }


def test_pictures_are_read_by_the_places_that_annotations_keep_whatever_members_are_called(task: ShardTask) -> None:
    by_rows = written(task)
    content = Path(task.shard_path).read_bytes()
    placed = dataclasses.replace(task, annotated=write_unit(Path(task.output).parent, has_places=True))
    by_places = write_shard(
        placed,
        labels_of(placed),
        ENDS,
        CLASS_IDS,
        members=MembersConfig(image_member="none"),
        store=StoreConfig(),
        fingerprint="mine",
    )
    assert (by_places, Path(task.shard_path).read_bytes()) == (by_rows, content)


WITHOUT_CHANGED = np.where(np.arange(8) == 3, End.LOW_SIMILARITY, ENDS).astype(np.int8)


def test_a_shard_is_finished_while_its_fingerprint_and_all_its_files_are_as_they_were_committed(
    task: ShardTask,
) -> None:
    assert finished_shard(task, "mine") is None
    record = written(task, WITHOUT_CHANGED)
    assert record["fingerprint"] == "mine" and "failed/write_shards/image_changed" not in record["outcomes"]
    assert finished_shard(task, "mine") == record and finished_shard(task, "other") is None
    for path in (f"{task.shard_path}.index", task.ledger_path, task.provenance_path):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content + b"x")
        assert finished_shard(task, "mine") is None
        Path(path).unlink()
        assert finished_shard(task, "mine") is None
        Path(path).write_bytes(content)
    assert finished_shard(task, "mine") == record


def test_a_shard_that_is_being_written_has_no_record(task: ShardTask, monkeypatch: pytest.MonkeyPatch) -> None:
    written(task, WITHOUT_CHANGED)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_table", kill)
    with pytest.raises(KeyboardInterrupt):
        written(task, WITHOUT_CHANGED)
    assert finished_shard(task, "mine") is None


def elsewhere(task: ShardTask) -> ShardTask:
    """Returns the task of the same unit in another set, whose earlier one is that of `task`."""
    output = Path(task.output).with_name("next")
    for name in ("ledger", "provenance"):
        (output / name).mkdir(parents=True)
    return dataclasses.replace(task, output=str(output), index=0, earlier=task)


def test_an_equal_shard_of_an_earlier_set_is_copied(task: ShardTask, counters: collections.Counter[str]) -> None:
    before = written(task, WITHOUT_CHANGED)
    later = elsewhere(task)
    assert copy_earlier_shard(later, "other") is None
    assert copy_earlier_shard(dataclasses.replace(later, earlier=None), "mine") is None
    assert not list(Path(later.output).glob("*.*")) and not counters
    assert copy_earlier_shard(later, "mine") == before == finished_shard(later, "mine")
    assert later.shard_path.endswith("next/i2e-train.tfrecord-00000")
    for old, new in (
        (task.shard_path, later.shard_path),
        (f"{task.shard_path}.index", f"{later.shard_path}.index"),
        (task.ledger_path, later.ledger_path),
        (task.provenance_path, later.provenance_path),
    ):
        assert Path(new).read_bytes() == Path(old).read_bytes()
    assert counters == {"write_shards/shards_copied": 1}


def test_a_shard_that_was_changed_since_is_not_taken_from_an_earlier_set(
    task: ShardTask, counters: collections.Counter[str]
) -> None:
    record = written(task, WITHOUT_CHANGED)
    Path(task.shard_path).write_bytes(bytes(record["size_bytes"]))  # of the same size
    assert copy_earlier_shard(elsewhere(task), "mine") is None and not counters


def test_an_old_record_is_deleted_before_a_shard_is_copied_over(
    task: ShardTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(task, WITHOUT_CHANGED)
    later = elsewhere(task)
    copy_earlier_shard(later, "mine")

    def kill(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "copy_file", kill)
    with pytest.raises(KeyboardInterrupt):
        copy_earlier_shard(later, "mine")
    assert finished_shard(later, "mine") is None


def test_a_copy_that_lacks_a_file_does_not_count(task: ShardTask, monkeypatch: pytest.MonkeyPatch) -> None:
    written(task, WITHOUT_CHANGED)
    copy_file = module.copy_file
    monkeypatch.setattr(module, "copy_file", lambda old, new: copy_file(old, new) if "ledger" not in old else None)
    assert copy_earlier_shard(elsewhere(task), "mine") is None


def test_the_fingerprint_is_of_labels_code_ends_and_the_classes_of_kept_labels(task: ShardTask) -> None:
    ends, class_ids = np.array([0, 4, 0], np.int8), np.array([7, 8, 9])
    of_bytes = b'["of labels", "code"]' + bytes([0, 4, 0]) + np.array([7, 9], "<i8").tobytes()
    assert shard_fingerprint(task, ends, class_ids, "code") == hashlib.sha256(of_bytes).hexdigest()
    assert shard_fingerprint(elsewhere(task), ends, class_ids, "code") == hashlib.sha256(of_bytes).hexdigest()


def test_annotations_that_are_not_the_committed_ones_are_refused(task: ShardTask) -> None:
    other = dataclasses.replace(task.annotated, sha256="0" * 16)
    with pytest.raises(UserError, match="u.parquet was changed since it was committed"):
        written(dataclasses.replace(task, annotated=other))
    fewer = dataclasses.replace(task.annotated, num_rows=8)
    with pytest.raises(RuntimeError, match=r"^u: 8 rows were read and 7 outcomes came back; without one: \[7\]"):
        written(dataclasses.replace(task, annotated=fewer))


@pytest.mark.parametrize("outcomes", [{"kept": 2, "dropped/x": 5}, {"kept": 3, "dropped/x": 3}, {"dropped/x": 7}])
def test_a_ledger_that_does_not_add_up_is_a_bug(
    task: ShardTask, monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, int]
) -> None:
    monkeypatch.setattr(module, "count_outcomes", lambda ledger: outcomes)
    with pytest.raises(RuntimeError) as refused:
        written(task)
    assert str(refused.value) == (
        f"{task.shard_path} has 3 records of 7 rows, but its ledger counts {outcomes}; this is a bug of the pipeline"
    )
    assert not Path(f"{task.shard_path}.commit.json").exists()


def test_a_unit_of_which_nothing_is_kept_has_an_empty_shard(task: ShardTask) -> None:
    record = written(task, np.full(8, End.LOW_SIMILARITY, np.int8))
    assert (record["num_records"], record["num_labels"], record["fingerprint"]) == (0, 0, "mine")
    assert len(ShardReader(task.shard_path)) == 0 and record["outcomes"]["dropped/select_labels/low_similarity"] == 6


def write_classes(folder: Path) -> Classes:
    """Writes the classes E1 (0) and E2 (1)."""
    ids = write_digest_map(str(folder / "classes.bin"), digests(["E1", "E2"]), np.array([0, 1], np.int32))
    return Classes(ids=ids, num_classes=2)


# What was written, and what becomes of the labels: as in ENDS, and E3 has no class.
COUNTED = {
    "write_shards/kept": 2,
    "write_shards/dropped": 4,
    "write_shards/failed": 1,
    "select_labels/rejected_low_similarity": 1,
    "select_labels/kept": 7,
    "deduplicate/rejected_duplicate_image": 1,
    "deduplicate/kept": 6,
    "build_vocabulary/rejected_rare_entity": 1,
    "build_vocabulary/kept": 5,
}


def test_a_unit_is_judged_written_once_and_counted_each_time(
    task: ShardTask, counters: collections.Counter[str], tmp_path: Path
) -> None:
    def judge(known: Any, selection: Any) -> tuple[Labels, np.ndarray]:
        assert (known, selection) == ("known", "selection")
        return labels_of(task), ENDS.copy()

    def process() -> tuple[int, dict[str, Any]]:
        do_fn = module._WriteDoFn({"known": task}.__getitem__, judge, MEMBERS, StoreConfig(max_side_px=8), "code")
        (result,) = do_fn.process((7, "known"), "selection", write_classes(tmp_path))
        return result

    number, record = process()
    assert (number, record["num_records"], record["outcomes"]["dropped/build_vocabulary/rare_entity"]) == (7, 2, 1)
    assert [one.class_ids for one in ShardReader(task.shard_path)] == [(0, 1), (0,)]
    assert [one.width_px for one in ShardReader(task.shard_path)] == [8, 8]
    provenance = pq.read_table(task.provenance_path)
    assert provenance["class_id"].to_pylist() == [0, 1, 0]
    assert counters == COUNTED | {"write_shards/shards_written": 1}
    counters.clear()
    # The picture of c was another one: what depends on it does not stay.
    assert process() == (7, record) and counters["write_shards/shards_written"] == 1


def test_shards_are_left_alone_where_all_is_as_it_was(
    task: ShardTask, counters: collections.Counter[str], tmp_path: Path
) -> None:
    classes = write_classes(tmp_path)

    def process(one: ShardTask) -> dict[str, Any]:
        do_fn = module._WriteDoFn(
            lambda known: one, lambda *_: (labels_of(one), WITHOUT_CHANGED.copy()), MEMBERS, StoreConfig(), "code"
        )
        ((_, record),) = do_fn.process((0, None), None, classes)
        return record

    record = process(task)
    assert record["fingerprint"] == shard_fingerprint(
        task, np.where(np.arange(8) == 6, End.RARE_ENTITY, WITHOUT_CHANGED), CLASS_IDS, "code"
    )
    counters.clear()
    assert process(task) == record
    assert counters["write_shards/kept"] == 2 and "write_shards/shards_written" not in counters
    counters.clear()
    assert process(elsewhere(task)) == record
    assert counters["write_shards/shards_copied"] == 1 and "write_shards/shards_written" not in counters


def test_in_a_job_each_unit_gives_a_record_with_its_number(task: ShardTask, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    labels, classes = labels_of(task), write_classes(tmp_path)
    with beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1))) as job:
        (
            job
            | beam.Create([(7, task)])
            | WriteShards(
                task_of=lambda known: known,
                judge=lambda known, least: (labels, np.where(labels.similarities < least, 4, 0).astype(np.int8)),
                selection=job | "Selection" >> beam.Create([0.5]),
                classes=job | "Classes" >> beam.Create([classes]),
                members=MEMBERS,
                store=StoreConfig(),
                code="code",
            )
            | beam.MapTuple(lambda number, record: found.write_text(json.dumps([number, record])))
        )
    number, record = json.loads(found.read_bytes())
    # Of a and g the second label has 0.5, and the others have 0.25.
    assert (number, record["outcomes"]) == (
        7,
        {"kept": 2, "dropped/select_labels/low_similarity": 4, "dropped/validate/image_too_small": 1},
    )
    ends = np.array([4, 0, 4, 4, 4, 4, 4, 0], np.int8)
    assert record["fingerprint"] == shard_fingerprint(task, ends, CLASS_IDS, "code")
