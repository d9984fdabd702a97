"""The job that assembles a set: from the annotations of two small units to manifest, shards, ledger and vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import (
    AnnotateConfig,
    AssembleConfig,
    MembersConfig,
    SelectLabelsConfig,
    StoreConfig,
    VocabularyConfig,
)
from pipeline.jobs import assemble as module
from pipeline.jobs.assemble import assemble
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import Entity
from pipeline.runners import RunnerConfig
from pipeline.shard_format import ShardReader
from pipeline.storage.annotation_format import ANNOTATION_SCHEMA
from pipeline.units import AnnotatedUnit, Part, Unit
from tests.fakes import png, write_tar

# Unit -> (id, shade of the picture, similarity to each entity that the row is linked to). Row d has the picture of p's
# row a, and q has a row a too.
ROWS: dict[str, list[tuple[str, int, dict[str, float]]]] = {
    "p": [
        ("a", 1, {"E1": 0.5}),
        ("b", 2, {"E2": 0.5, "E1": 0.3125}),
        ("c", 3, {"E1": 0.125}),
        ("h", 8, {"E3": 0.75}),
        ("i", 9, {"E3": 0.8125}),
    ],
    "q": [
        ("a", 4, {"E1": 0.5}),
        ("d", 1, {"E1": 0.625}),
        ("e", 5, {"E2": 0.4375}),
        ("g", 7, {"E2": 0.46875}),
        ("f", 6, {"E4": 0.875}),
    ],
    "r": [("a", 5, {"E1": 0.5}), ("k", 5, {"E1": 0.5})],
}
# Pictures have an ending that is found by this config alone.
ANNOTATE = AnnotateConfig(members=MembersConfig(image_member="picture"))
ONE_WORKER = RunnerConfig(workers=1)


def linked(entity_id: str, similarity: float) -> dict[str, Any]:
    candidates = [{"entity_id": entity_id, "similarity": similarity}]
    return {"surface": entity_id, "chosen": entity_id, "probability": 0.75, "candidates": candidates}


def write_unit(folder: Path, name: str) -> AnnotatedUnit:
    records, members = [], []
    for row, (image_id, shade, links) in enumerate(ROWS[name]):
        picture = png(shade)
        members += [(f"{row}.picture", picture), (f"{row}.txt", b"x")]
        records.append({
            "image_id": image_id, "shard": f"{name}.tar", "row": row, "text": "text", "outcome": "annotated",
            "image_sha256": hashlib.sha256(picture).hexdigest(), "image_bytes": len(picture),
            "linked": [linked(*link) for link in links.items()],
        })  # fmt: skip
    write_tar(folder / f"{name}.tar", members)
    path = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(records, schema=ANNOTATION_SCHEMA), path)
    part = Part(path=str(folder / f"{name}.tar"), file=f"{name}.tar", fingerprint=name)
    return AnnotatedUnit(
        unit=Unit(name=name, parts=(part,)),
        path=str(path),
        num_rows=len(records),
        key=f"key of {name}",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the units and the knowledge base."""
    folder = tmp_path_factory.mktemp("inputs")
    with KnowledgeBaseWriter(str(folder / "kb")) as writer:
        for number in range(1, 5):
            writer.add(Entity(entity_id=f"E{number}", label=f"Entity {number}"))
        writer.commit(source="fake", source_sha256="0")
    return folder


@pytest.fixture(scope="module")
def units(folder: Path) -> tuple[AnnotatedUnit, AnnotatedUnit]:
    return write_unit(folder, "p"), write_unit(folder, "q")


def config(
    min_similarity: float | None = 0.25, *, entity_floor: int = 0, images: int = 2, max_side_px: int | None = None
) -> AssembleConfig:
    return AssembleConfig(
        select=SelectLabelsConfig(min_similarity=min_similarity, entity_floor=entity_floor),
        vocabulary=VocabularyConfig(min_images_per_entity=images),
        store=StoreConfig(max_side_px=max_side_px),
    )


def run(
    units: Sequence[AnnotatedUnit], output: Path, kb: Path, settings: AssembleConfig, **options: Any
) -> dict[str, Any]:
    return assemble(
        units,
        str(output),
        kb_path=str(kb),
        hashes={"kb": "hash"},
        config=settings,
        annotate_config=ANNOTATE,
        runner=ONE_WORKER,
        **options,
    )


def records(output: Path, index: int) -> list[tuple[str, tuple[int, ...]]]:
    """Returns id and classes of the records of a shard."""
    return [(one.image_id, one.class_ids) for one in ShardReader(output / f"i2e-train.tfrecord-{index:05d}")]


def ends(output: Path, unit: str) -> list[str]:
    """Returns what became of each row of a unit."""
    return [row["reason"] or row["outcome"] for row in pq.read_table(output / "ledger" / f"{unit}.parquet").to_pylist()]


def classes(output: Path) -> list[tuple[str, int]]:
    """Returns the entities of the vocabulary, with their numbers of images."""
    lines = map(json.loads, (output / "vocabulary.jsonl").read_text().splitlines())
    return [(line["entity_id"], line["image_count"]) for line in lines]


def times(output: Path) -> list[int]:
    """Returns when each shard was written."""
    return [path.stat().st_mtime_ns for path in sorted(output.glob("i2e-train.tfrecord-?????"))]


def test_labels_become_shards_a_ledger_and_a_vocabulary(
    units: tuple[AnnotatedUnit, AnnotatedUnit],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = []
    real = module.pipeline_options

    def recorded(*arguments: Any, **named: Any) -> Any:
        options.append((arguments, named))
        return real(*arguments, **named)

    monkeypatch.setattr(module, "pipeline_options", recorded)
    monkeypatch.setattr(module, "_ROWS_PER_WORKER", 5)
    manifest = run(units, tmp_path, folder / "kb", config(), beam_args=("--job_name=mine",))
    # Two workers of 5 rows each are worth while; the config has one.
    assert options == [((ONE_WORKER, ("--job_name=mine",)), {"num_tasks": 2})]
    # E2 has b, e and g; E1 has a and b; E3 has h and i, and E4 has f alone.
    assert classes(tmp_path) == [("E2", 3), ("E1", 2), ("E3", 2)]
    assert records(tmp_path, 0) == [("a", (1,)), ("b", (1, 0)), ("h", (2,)), ("i", (2,))]
    assert records(tmp_path, 1) == [("e", (0,)), ("g", (0,))]
    assert ends(tmp_path, "p") == ["kept", "kept", "low_similarity", "kept", "kept"]
    assert ends(tmp_path, "q") == ["duplicate_id", "duplicate_image", "kept", "kept", "rare_entity"]
    inputs = module._inputs_of_set(
        units, hashes={"kb": "hash"}, config=config(), annotate_config=ANNOTATE, earlier=None
    )
    assert {name: manifest[name] for name in inputs} == inputs
    shards = [{name: value for name, value in shard.items() if name != "sha256"} for shard in manifest["shards"]]
    assert shards == [
        {
            "file": "i2e-train.tfrecord-00000", "unit": "p", "num_records": 4,
            "min_class_id": 0, "max_class_id": 2, "most_entities": 2,
        },
        {
            "file": "i2e-train.tfrecord-00001", "unit": "q", "num_records": 2,
            "min_class_id": 0, "max_class_id": 0, "most_entities": 1,
        },
    ]  # fmt: skip
    names = ("num_classes", "num_rows", "num_labels", "min_similarity", "kb")
    assert [manifest[name] for name in names] == [3, 10, 7, 0.25, str(folder / "kb")]
    assert json.loads((tmp_path / "manifest.json").read_bytes()) == manifest
    assert capsys.readouterr().out == "assemble: 2 shards\n"
    # Again there is nothing to do, and no job.
    options.clear()
    assert run(units, tmp_path, folder / "kb", config()) == manifest
    assert capsys.readouterr().out == "assemble: 2 shards, already assembled; nothing to do\n" and not options


def test_only_shards_that_differ_are_written(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path
) -> None:
    run(units, tmp_path, folder / "kb", config())
    before = times(tmp_path)
    # b is E1 no more, and a alone is too rare; the class of E2 stays.
    run(units, tmp_path, folder / "kb", config(0.375))
    assert (records(tmp_path, 0), classes(tmp_path)) == (
        [("b", (0,)), ("h", (1,)), ("i", (1,))],
        [("E2", 3), ("E3", 2)],
    )
    after = times(tmp_path)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]
    # Pictures of another size are other shards.
    run(units, tmp_path, folder / "kb", config(0.375, max_side_px=8))
    assert [one.width_px for one in ShardReader(tmp_path / "i2e-train.tfrecord-00001")] == [8, 8]


def test_a_run_that_stops_leaves_no_manifest_and_the_next_one_deletes_what_it_does_not_have(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(units, tmp_path, folder / "kb", config())

    def fail(*_: object, **__: object) -> None:
        assert not (tmp_path / "manifest.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "pipeline_options", fail)
        run(units[:1], tmp_path, folder / "kb", config())
    assert not (tmp_path / "ledger" / "q.parquet").exists()
    manifest = run(units[:1], tmp_path, folder / "kb", config())
    assert [shard["unit"] for shard in manifest["shards"]] == ["p"]


def test_the_best_labels_of_an_entity_pass_a_threshold_where_it_has_a_floor(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path
) -> None:
    run(units, tmp_path, folder / "kb", config(0.6875, entity_floor=1, images=1))
    # Those of E1 and E2 are d and b, below the threshold; of E3 two reach it.
    assert [ends(tmp_path, unit).count("kept") for unit in "pq"] == [3, 2]
    assert classes(tmp_path) == [("E3", 2), ("E1", 1), ("E2", 1), ("E4", 1)]
    assert (tmp_path / "assembly" / "cutoffs.bin").exists()


def test_a_set_that_continues_another_keeps_its_threshold_its_classes_and_its_shards(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_share = config(None, images=1)
    first, second = tmp_path / "first", tmp_path / "second"
    # Four of five labels: all but e's 0.4375.
    threshold = run(units[1:], first, folder / "kb", by_share)["min_similarity"]
    assert threshold == pytest.approx(0.4687) and classes(first) == [("E1", 2), ("E2", 1), ("E4", 1)]
    manifest = run(units, second, folder / "kb", by_share, earlier_set=str(first))
    assert manifest["min_similarity"] == threshold
    assert [shard["unit"] for shard in manifest["shards"]] == ["q", "p"]
    assert classes(second) == [("E1", 2), ("E2", 2), ("E4", 1), ("E3", 2)]
    assert records(second, 1) == [("b", (1,)), ("h", (3,)), ("i", (3,))]
    shard = "i2e-train.tfrecord-00000"
    assert (second / shard).read_bytes() == (first / shard).read_bytes()
    capsys.readouterr()
    assert run(units, second, folder / "kb", by_share, earlier_set=str(first)) == manifest
    assert "nothing to do" in capsys.readouterr().out
    # The same in the folder of the first set.
    before = times(first)
    here = run(units, first, folder / "kb", by_share, earlier_set=str(first))
    assert here == manifest and times(first)[:1] == before
    assert not list((first / "assembly" / "earlier").glob("*"))
    capsys.readouterr()
    assert run(units, first, folder / "kb", by_share, earlier_set=str(first)) == manifest
    assert "nothing to do" in capsys.readouterr().out
    # Without the earlier set, or with another one, it is another set.
    third = run(units, second, folder / "kb", by_share, earlier_set=str(second / ".." / "first"))
    assert third["continues"] != manifest["continues"] and "nothing" not in capsys.readouterr().out


def test_a_set_that_continues_itself_goes_on_from_copies_after_a_kill(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(units[1:], tmp_path, folder / "kb", config(images=1))
    before = (tmp_path / "manifest.json").read_bytes()

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "pipeline_options", kill)
        run(units, tmp_path, folder / "kb", config(images=1), earlier_set=str(tmp_path))
    copies = tmp_path / "assembly" / "earlier"
    assert (copies / "manifest.json").read_bytes() == before and (copies / "vocabulary.jsonl").exists()
    manifest = run(units, tmp_path, folder / "kb", config(images=1), earlier_set=str(tmp_path))
    assert [shard["unit"] for shard in manifest["shards"]] == ["q", "p"] and not list(copies.glob("*"))


def test_a_row_whose_id_was_seen_before_does_not_count_as_the_first_with_its_picture(
    units: tuple[AnnotatedUnit, AnnotatedUnit], folder: Path, tmp_path: Path
) -> None:
    run([units[0], write_unit(tmp_path, "r")], tmp_path / "set", folder / "kb", config())
    assert ends(tmp_path / "set", "r") == ["duplicate_id", "kept"]
