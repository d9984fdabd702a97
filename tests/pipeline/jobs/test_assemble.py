"""The steps around the job that assembles a set: its tasks, what they depend on, leftovers, and the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import (
    AnnotateConfig,
    AssembleConfig,
    DisambiguateConfig,
    MembersConfig,
    SelectLabelsConfig,
)
from pipeline.jobs import assemble as job
from pipeline.jobs import pack as pack_job
from pipeline.linking.weights import Weights
from pipeline.runners import RunnerConfig, pipeline_options
from pipeline.schema import EVIDENCE, UserError
from pipeline.shard_format import FORMAT_VERSION
from pipeline.sources.inputs import InputShard
from pipeline.stages.build_vocabulary import Classes
from pipeline.stages.select_labels import Selection
from pipeline.storage.digests import DigestMap, digests
from pipeline.storage.earlier_set import EarlierSet
from pipeline.storage.funnel import ENTITY_FILTER_SCHEMA, write_entity_filter
from pipeline.storage.labels import End, Labels, write_labels
from pipeline.units import AnnotatedUnit, Part, Unit


def annotated(name: str, *files: str) -> AnnotatedUnit:
    """Returns a unit of whole files, by default one of its name."""
    parts = [Part(path=f"in/{file}", file=file, fingerprint=f"f-{file}") for file in files or (f"{name}.tar",)]
    return AnnotatedUnit(
        unit=Unit(name=name, parts=tuple(parts)), path=f"{name}.parquet", num_rows=3, key=f"k-{name}", sha256="5"
    )


A, B, C = annotated("a"), annotated("b"), annotated("c")
EARLIER = EarlierSet(
    folder="old",
    manifest={"min_similarity": 0.25, "shards": [{"unit": "c"}, {"unit": "gone"}, {"unit": "a"}]},
    vocabulary_path="old/vocabulary.jsonl",
    is_replaced=False,
    fingerprint="f-old",
)


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of code is the names of its files."""
    monkeypatch.setattr(job, "package_files", lambda names: [f"pipeline/{name}" for name in names])
    monkeypatch.setattr(job, "code_fingerprint", lambda files: " ".join(files))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def files_of(name: str, index: int) -> list[str]:
    shard = f"i2e-train.tfrecord-{index:05d}"
    return [shard, f"{shard}.index", f"ledger/{name}.parquet", f"provenance/{name}.parquet", f"{shard}.commit.json"]


def test_units_of_an_earlier_set_come_first_in_its_order_and_new_ones_follow() -> None:
    tasks = job._tasks([A, B, C], "new", EARLIER)
    assert [(task.annotated, task.index, task.output) for task in tasks] == [
        (C, 0, "new"),
        (A, 1, "new"),
        (B, 2, "new"),
    ]
    assert tasks[0].earlier == dataclasses.replace(tasks[0], index=0, output="old", earlier=None)
    assert tasks[1].earlier == dataclasses.replace(tasks[1], index=2, output="old", earlier=None)
    assert tasks[2].earlier is None
    # Continued in its own folder the order is the same, and there is nothing to copy.
    here = job._tasks([A, B, C], "new", dataclasses.replace(EARLIER, is_replaced=True))
    assert here == [dataclasses.replace(task, earlier=None) for task in tasks]
    assert [task.annotated for task in job._tasks([B, A], "new", None)] == [B, A]


def test_labels_depend_on_their_annotations_and_on_code() -> None:
    (task,) = job._tasks([A], "new", None)
    content = b'["k-a", "pipeline/storage/labels.py pipeline/storage/digests.py"]'
    assert task.labels_key == hashlib.sha256(content).hexdigest()


def test_what_an_earlier_run_left_of_other_units_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    needed = {*files_of("a", 0), *files_of("b", 1), "assembly/labels/a.arrow", "assembly/labels/b.arrow"}
    others = {"i2e-train-of-mine.tar", "manifest.json", "assembly/totals.json", "assembly/else/c.arrow"}
    leftovers = {*files_of("c", 2), "assembly/labels/c.arrow", "assembly/records/00000.json"}
    touch(tmp_path, *needed, *others, *leftovers)
    job._delete_leftovers(job._tasks([A, B], str(tmp_path), None), str(tmp_path))
    assert names_in(tmp_path) == needed | others


def test_a_set_is_cleared_with_its_manifest_first_and_a_disk_gets_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "manifest.json", "ledger/old.parquet")
    for _ in range(2):
        job._clear(job._tasks([A], str(tmp_path), None), str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger", "provenance"]
        assert not names_in(tmp_path)
    deleted: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "delete_matching", deleted.extend)
    monkeypatch.setattr(job, "_delete_leftovers", lambda tasks, output: deleted.append(output))
    job._clear([], "gs://bucket/set")
    assert deleted == ["gs://bucket/set/manifest.json", "gs://bucket/set"]
    assert len(list(tmp_path.iterdir())) == 2  # a store needs no folder


def test_a_threshold_is_that_of_the_config_or_of_the_earlier_set() -> None:
    given, by_share = SelectLabelsConfig(min_similarity=0.5), SelectLabelsConfig(keep_share=0.9)
    assert job._selection_config(given, EARLIER) == given == job._selection_config(given, None)
    assert job._selection_config(by_share, None) == by_share
    assert job._selection_config(by_share, EARLIER) == dataclasses.replace(by_share, min_similarity=0.25)


def test_a_set_is_whole_with_four_files_and_a_record_of_each_unit_and_those_beside_them(tmp_path: Path) -> None:
    tasks = job._tasks([A, B], str(tmp_path), None)
    names = ["vocabulary.jsonl", "funnel.json"]
    assert job._missing_files(tasks, str(tmp_path), names) == [
        f"{tmp_path}/{name}" for name in (*names, *files_of("a", 0), *files_of("b", 1))
    ]
    touch(tmp_path, *names, *files_of("a", 0), *files_of("b", 1)[1:])
    assert job._missing_files(tasks, str(tmp_path), names) == [f"{tmp_path}/i2e-train.tfrecord-00001"]


def test_a_finished_set_has_the_same_inputs_and_all_its_files(tmp_path: Path) -> None:
    tasks = job._tasks([A], str(tmp_path), None)
    manifest = {"kind": "i2e", "annotations": "x", "num_rows": 3}
    beside = [
        *("dataset_info.json", "features.json", "vocabulary.jsonl", "funnel.json", "entity_filter.parquet"),
        *files_of("a", 0),
    ]
    touch(tmp_path, *beside)
    assert job._finished_set(tasks, str(tmp_path), {}) is None  # no manifest
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert job._finished_set(tasks, str(tmp_path), {"kind": "i2e", "annotations": "x"}) == manifest
    assert job._finished_set(tasks, str(tmp_path), {"kind": "i2e", "annotations": "y"}) is None
    assert job._finished_set(tasks, str(tmp_path), {"kind": "i2e", "else": "x"}) is None
    for name in beside:
        (tmp_path / name).unlink()
        assert job._finished_set(tasks, str(tmp_path), {"kind": "i2e"}) is None
        touch(tmp_path, name)


def test_the_manifest_states_all_that_the_set_depends_on_and_each_input_once() -> None:
    config, annotate_config = AssembleConfig(), AnnotateConfig()
    units = [annotated("a", "x.tar", "y.tar"), annotated("b", "y.tar")]
    code = [
        *("storage/labels.py", "storage/digests.py", "schema.py", "byte_cache.py", "units.py", "shard_format.py"),
        *("sources/*.py", "images/*.py", "stages/write_shards.py", "storage/ledger.py", "jobs/assemble.py"),
        *("storage/annotation_format.py", "storage/earlier_set.py", "storage/funnel.py", "storage/tfds_metadata.py"),
        *("stages/select_labels.py", "stages/deduplicate.py", "stages/build_vocabulary.py"),
    ]
    annotate = dataclasses.asdict(annotate_config)
    del annotate["read"]  # how rows are batched changes no byte
    stated: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": "i2e",
        "config": {"annotate": annotate, "assemble": dataclasses.asdict(config)},
        "hashes": {"kb": "h", "assemble_code": " ".join(f"pipeline/{name}" for name in code)},
        "continues": None,
        "annotations": hashlib.sha256(b'["k-a", "k-b"]').hexdigest(),
        "inputs": [
            {"path": "in/x.tar", "file": "x.tar", "fingerprint": "f-x.tar"},
            {"path": "in/y.tar", "file": "y.tar", "fingerprint": "f-y.tar"},
        ],
    }
    settings: dict[str, Any] = {"hashes": {"kb": "h"}, "config": config, "annotate_config": annotate_config}
    assert job._inputs_of_set(units, earlier=None, **settings) == stated
    assert job._inputs_of_set(units, earlier=EARLIER, **settings) == stated | {"continues": "f-old"}


def test_a_set_says_where_names_are_looked_up_and_how_the_linker_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(of_evidence=tuple(float(place) for place in range(len(EVIDENCE))), bias=-0.5, probability_min=0.3)
    monkeypatch.setattr(job, "weights_of", lambda config: {"mine.json": weights}[config.weights])
    config = AnnotateConfig(disambiguate=DisambiguateConfig(weights="mine.json"))
    assert job._to_explain("kb", config) == {
        "kb": "kb",
        "linker": {
            "bias": -0.5,
            "probability_min": 0.3,
            "weights": {name: float(place) for place, name in enumerate(EVIDENCE)},
        },
    }


def test_records_are_in_files_of_up_to_a_thousand_in_the_order_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_RECORDS_PER_FILE", 2)
    with beam.Pipeline(options=pipeline_options(RunnerConfig(workers=1))) as pipeline:
        pipeline | beam.Create([(2, {"n": 2}), (1, {"n": 1}), (0, {"n": 0})]) | job.WriteRecords(str(tmp_path))
    assert {path.name: json.loads(path.read_bytes()) for path in tmp_path.iterdir()} == {
        "00000.json": {"records": [{"n": 0}, {"n": 1}]},
        "00001.json": {"records": [{"n": 2}]},
    }
    job.WriteRecords(str(tmp_path))._write(12, [(25, {"n": 25}), (24, {"n": 24})])
    assert json.loads((tmp_path / "00012.json").read_bytes()) == {"records": [{"n": 24}, {"n": 25}]}


def test_the_threshold_and_the_number_of_classes_are_written(tmp_path: Path) -> None:
    job._write_totals(
        Selection(min_similarity=0.25), Classes(ids=DigestMap(path="x", sha256="y"), num_classes=3), str(tmp_path)
    )
    assert json.loads((tmp_path / "totals.json").read_bytes()) == {"min_similarity": 0.25, "num_classes": 3}


def test_labels_are_prepared_from_the_annotations_of_their_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(job, "prepare_labels", lambda *paths, **hashes: calls.append((paths, hashes)))
    (task,) = job._tasks([A], "out", None)
    assert job._prepare((7, task)) == (7, task)
    assert calls == [(("a.parquet", "out/assembly/labels/a.arrow"), {"key": task.labels_key, "sha256": "5"})]


def labels(*similarities: float) -> Labels:
    """Returns labels of E1, of a row each."""
    number = len(similarities)
    return Labels(
        rows=np.arange(number, dtype=np.int32),
        mentions=np.zeros(number, np.int32),
        entities=np.zeros(number, np.int32),
        entity_ids=pa.array(["E1"]),
        probabilities=np.full(number, 0.9),
        similarities=np.array(similarities),
        verifier_scores=np.full(number, np.nan),
        id_digests=digests([str(place) for place in range(number)]),
        image_digests=digests([str(place) for place in range(number)]),
    )


def test_a_label_ends_by_the_threshold_or_as_a_duplicate_of_what_is_known_so_far(tmp_path: Path) -> None:
    (task,) = job._tasks([A], str(tmp_path), None)
    (tmp_path / "assembly" / "labels").mkdir(parents=True)
    write_labels(task.labels_path, labels(0.5, 0.2, 0.5, 0.5), key=task.labels_key)
    assert job._labels_of_numbered((0, task)).similarities.tolist() == [0.5, 0.2, 0.5, 0.5]
    rows = [np.array([row], "<i4").tobytes() for row in (2, 3)]
    config, selection = SelectLabelsConfig(), Selection(min_similarity=0.25)
    known = {"tasks": [task], "same_id": rows[:1], "same_image": rows[1:]}
    found, ends = job._judge(known, selection, config=config)
    assert len(found) == 4
    assert ends.tolist() == [End.KEPT, End.LOW_SIMILARITY, End.DUPLICATE_ID, End.DUPLICATE_IMAGE]
    assert job._judge({"tasks": [task]}, selection, config=config)[1].tolist() == [
        *(End.KEPT, End.LOW_SIMILARITY, End.KEPT, End.KEPT)
    ]
    assert job._task_of(known) == task
    with pytest.raises(ValueError, match="too many values"):
        job._task_of({"tasks": [task, task]})


def finish(folder: Path, *, config: AssembleConfig | None = None, keep_fields: str = "") -> dict[str, Any]:
    tasks = job._tasks([A, B], str(folder), None)
    members = dataclasses.asdict(MembersConfig(keep_fields=keep_fields))
    inputs = {"kind": "i2e", "config": {"annotate": {"members": members}}}
    return job._finish(tasks, str(folder), inputs=inputs, config=config or AssembleConfig(), to_explain={"kb": "base"})


def write_what_the_job_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Writes it, in a file per record, and returns what is to be written of TensorFlow Datasets' metadata."""
    written: list[Any] = []
    monkeypatch.setattr(job, "write_tfds_metadata", lambda *values, **named: written.append((*values, named)))
    monkeypatch.setattr(job, "_RECORDS_PER_FILE", 1)
    touch(folder, *files_of("a", 0), *files_of("b", 1), "vocabulary.jsonl")
    counts = [{name: 0 for name in ENTITY_FILTER_SCHEMA.names} | {"entity_id": "E1", "kept": 3}]
    table = pa.Table.from_pylist(counts, schema=ENTITY_FILTER_SCHEMA)
    write_entity_filter(str(folder / "entity_filter.parquet"), table, num_images_min=1)
    (folder / "assembly" / "records").mkdir(parents=True)
    for place, ends in enumerate(({"kept": 2}, {"kept": 1, "failed/read/timeout": 1})):
        record = {
            "num_rows": 2, "num_records": 2 - place, "num_labels": 5 - place, "outcomes": ends, "sha256": f"s{place}"
        }  # fmt: skip
        (folder / "assembly" / "records" / f"{place:05d}.json").write_text(json.dumps({"records": [record]}))
    (folder / "assembly" / "totals.json").write_text('{"min_similarity": 0.25, "num_classes": 1}')
    return written


LENIENT = AssembleConfig(max_failed_share=0.25)


def test_the_manifest_is_written_last_with_shards_and_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = write_what_the_job_writes(tmp_path, monkeypatch)
    manifest = finish(tmp_path, config=LENIENT)
    assert {name: value for name, value in manifest.items() if name != "config"} == {
        "kind": "i2e",
        "kb": "base",
        "shards": [
            {"file": "i2e-train.tfrecord-00000", "unit": "a", "num_records": 2, "sha256": "s0"},
            {"file": "i2e-train.tfrecord-00001", "unit": "b", "num_records": 1, "sha256": "s1"},
        ],
        "num_classes": 1,
        "num_rows": 4,
        "num_labels": 9,
        "min_similarity": 0.25,
    }
    assert json.loads((tmp_path / "manifest.json").read_bytes()) == manifest
    funnel = json.loads((tmp_path / "funnel.json").read_bytes())
    assert funnel["rows"] == {"read": 4, "kept": 3, "dropped": 0, "failed": 1}
    assert (funnel["labels"]["kept"], funnel["min_similarity"]) == (3, 0.25)
    ((folder, dataset, records, named),) = metadata
    assert (folder, dataset, [record["sha256"] for record in records]) == (str(tmp_path), "i2e", ["s0", "s1"])
    assert named == {"has_fields": False}
    finish(tmp_path, config=LENIENT, keep_fields="url")
    assert metadata[1][-1] == {"has_fields": True}


def test_a_set_with_too_many_failed_rows_has_a_funnel_and_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = write_what_the_job_writes(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=rf"1 of 4 rows failed \(25.00 %, limit 1 %\); see {tmp_path}/ledger; "):
        finish(tmp_path)
    assert (tmp_path / "funnel.json").exists() and not (tmp_path / "manifest.json").exists() and not metadata


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (("assembly/records/00001.json",), r"with 1 of 2 shards and without 0 files \(\)"),
        (("vocabulary.jsonl",), r"with 2 of 2 shards and without 1 files \(.*/vocabulary.jsonl\)"),
        (
            ("entity_filter.parquet", "ledger/b.parquet"),
            r"with 2 of 2 shards and without 2 files \([^,]*/entity_filter.parquet\)",
        ),
    ],
)
def test_a_job_that_did_not_write_all_of_the_set_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...], message: str
) -> None:
    write_what_the_job_writes(tmp_path, monkeypatch)
    for name in lost:
        (tmp_path / name).unlink()
    with pytest.raises(RuntimeError, match=f"^the job ended {message}; run again, and only one run at a time$"):
        finish(tmp_path, config=LENIENT)


def test_further_processes_assemble_and_pack_only_where_there_is_enough_for_each() -> None:
    def of_rows(*rows: int) -> list[AnnotatedUnit]:
        return [dataclasses.replace(A, num_rows=one) for one in rows]

    # One process for 50,000 rows, but none without a unit.
    assert [job._num_tasks(of_rows(*rows)) for rows in ([9], [50_000, 49_999], [60_000] * 5, [400_000] * 2)] == [
        0,
        1,
        5,
        2,
    ]
    shard = InputShard(path="a", file="a", name="a", fingerprint="f", size_bytes=48 << 20, updated_sec=0.0)
    # One for 64 MiB: 48, 96, 144 and 192 of them.
    assert [pack_job._num_tasks([shard] * number) for number in range(1, 5)] == [0, 1, 2, 3]
