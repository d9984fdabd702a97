"""The two jobs end to end, with a stand-in for the models."""

from __future__ import annotations

import collections
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from PIL import Image

from pipeline import build_i2e as command
from pipeline.build_i2e import BuildI2EConfig, build_i2e, main
from pipeline.config import (
    AnnotateConfig,
    AssembleConfig,
    DisambiguateConfig,
    MembersConfig,
    ProposeConfig,
    ReadConfig,
    SelectLabelsConfig,
    StoreConfig,
    UnitConfig,
    VocabularyConfig,
)
from pipeline.jobs.annotate import Models, annotate, model_stages
from pipeline.kb.build.write_store import KnowledgeBaseWriter
from pipeline.kb.store import FORMAT_VERSION, Entity
from pipeline.runners import RunnerConfig
from pipeline.schema import UserError
from pipeline.shard_format import ShardReader, open_set
from pipeline.storage.beam_files import HashedFile
from pipeline.storage.lock import output_lock
from tests.fakes import (
    FakeLinker,
    LosingStage,
    pair,
    png,
    write_bad_tars,
    write_encoder_stub,
    write_knowledge_base,
    write_tar,
)

KEEP_ALL = SelectLabelsConfig(min_similarity=-1.0)


def make_world(folder: Path) -> None:
    """Writes a knowledge base, an encoder, a tagger file and three shards."""
    write_knowledge_base(folder / "kb")
    write_encoder_stub(folder / "encoder")
    (folder / "tagger.pt").write_bytes(b"tagger")
    # Shard 0: a and b show E1; c shows E1 and E2; d names nothing; e has no text; f is unsure.
    write_tar(
        folder / "pairs-0.tar",
        [
            *pair("a", "E1 here", 1),
            *pair("b", "E1", 2),
            *pair("c", "E1 and E2", 3),
            *pair("d", "nothing", 4),
            pair("e", "", 5)[0],
            *pair("f", "E1?", 6),
        ],
    )
    # Shard 1: g is the picture of a again; h shows E2; a is an id seen before; i shows E3, the only one to.
    write_tar(
        folder / "pairs-1.tar",
        [*pair("g", "E1", 1), *pair("h", "E2", 8), *pair("a", "E2", 9), *pair("i", "E3", 10)],
    )
    write_tar(folder / "pairs-2.tar", [])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with its set in `i2e`; tests read it only."""
    folder = tmp_path_factory.mktemp("built")
    make_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "model_stages", lambda models, config: [FakeLinker()])
        build_i2e(settings(folder))
    return folder


@pytest.fixture
def world(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world with the annotations of an earlier run; the model stages are fakes."""
    make_world(tmp_path)
    shutil.copytree(built / "kb", tmp_path / "kb", dirs_exist_ok=True)  # the same hash by all means
    shutil.copytree(built / "i2e", tmp_path / "i2e")
    monkeypatch.setattr(command, "model_stages", lambda models, config: [FakeLinker()])
    return tmp_path


def settings(world: Path, *, output: str = "i2e", **changes) -> BuildI2EConfig:  # type: ignore[no-untyped-def]
    fields = {
        "input": str(world / "pairs-*.tar"),
        "kb": str(world / "kb"),
        "ner_model": str(world / "tagger.pt"),
        "encoder": str(world / "encoder"),
        "output": str(world / output),
        "units": UnitConfig(unit_rows=0),  # one for each file
        "runner": RunnerConfig(workers=1),  # this process, in which stand-ins are
        "assemble": AssembleConfig(select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=2)),
        **changes,
    }
    return BuildI2EConfig(**fields)


def arguments(world: Path) -> list[str]:
    """Returns the flags of the command that name the files of the world."""
    good = settings(world)
    defaults = {name: getattr(good, name) for name in ("input", "kb", "ner_model", "encoder", "output")}
    flags = [part for name, value in defaults.items() for part in ("--" + name.replace("_", "-"), value)]
    return [*flags, "--unit-rows", "0", "--workers", "1"]


def ledger(output: Path) -> dict[tuple[str, int], tuple]:
    rows = [row for path in sorted((output / "ledger").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {(row["shard"], row["row"]): (row["image_id"], row["outcome"], row["reason"]) for row in rows}


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def test_every_input_row_has_the_outcome_worked_out_by_hand(built: Path) -> None:
    manifest = open_set(built / "i2e").manifest
    assert ledger(built / "i2e") == {
        ("pairs-0.tar", 0): ("a", "kept", None),
        ("pairs-0.tar", 1): ("b", "kept", None),
        ("pairs-0.tar", 2): ("c", "kept", None),
        ("pairs-0.tar", 3): ("d", "dropped", "no_mention"),
        ("pairs-0.tar", 4): ("e", "dropped", "missing_text"),
        ("pairs-0.tar", 5): ("f", "dropped", "low_probability"),
        ("pairs-1.tar", 0): ("g", "dropped", "duplicate_image"),
        ("pairs-1.tar", 1): ("h", "kept", None),
        ("pairs-1.tar", 2): ("a", "dropped", "duplicate_id"),
        ("pairs-1.tar", 3): ("i", "dropped", "rare_entity"),
    }
    # E1 is left on a, b, c; E2 on c and h; E3 on i alone, and 2 are needed.
    assert [(entry.entity_id, entry.image_count) for entry in open_set(built / "i2e").vocabulary] == [
        ("E1", 3),
        ("E2", 2),
    ]
    assert [shard["num_records"] for shard in manifest["shards"]] == [3, 1, 0]
    # a and b have E1, c has E1 and E2; h has E2.
    stated = ("min_class_id", "max_class_id", "most_entities")
    assert [tuple(shard.get(name) for name in stated) for shard in manifest["shards"]] == [
        (0, 1, 2),
        (1, 1, 1),
        (None, None, None),
    ]
    funnel = json.loads((built / "i2e" / "funnel.json").read_text())
    assert funnel["rows"] == {"read": 10, "kept": 4, "dropped": 6, "failed": 0}
    # Labels: a b c(2) f | g h a i -> 9; kept a b c(2) h.
    assert funnel["labels"]["kept"] == 5 and sum(funnel["labels"].values()) == 9


@pytest.mark.parametrize(
    ("units", "num_records"),
    [
        (UnitConfig(), [4]),  # all three files in one unit
        # Two rows each: a b | c d | e f, g h | a i, and the empty file. Kept are a, b, c and h.
        (UnitConfig(unit_rows=2), [2, 1, 0, 1, 0, 0]),
    ],
    ids=["together", "split"],
)
def test_every_row_ends_in_the_same_way_however_files_are_cut_into_units(
    world: Path, built: Path, units: UnitConfig, num_records: list[int]
) -> None:
    manifest = build_i2e(settings(world, output="cut", units=units))
    assert [shard["num_records"] for shard in manifest["shards"]] == num_records
    assert ledger(world / "cut") == ledger(built / "i2e")
    assert (world / "cut" / "vocabulary.jsonl").read_bytes() == (built / "i2e" / "vocabulary.jsonl").read_bytes()


def test_an_image_with_two_entities_carries_both_with_their_classes_and_provenance(built: Path) -> None:
    image_set = open_set(built / "i2e")
    record = ShardReader(image_set.shard_paths[0])[2]
    assert (record.image_id, record.entity_ids, record.class_ids) == ("c", ("E1", "E2"), (0, 1))
    assert image_set.vocabulary[1].name == "Entity 2" and image_set.vocabulary[1].description == "the 2"
    rows = pq.read_table(built / "i2e" / "provenance" / "pairs-0.parquet").to_pylist()
    (row,) = [row for row in rows if row["image_id"] == "c" and row["entity_id"] == "E2"]
    assert (row["start"], row["end"], row["surface"], row["class_id"]) == (7, 9, "E2", 1)
    assert row["candidates"][0]["entity_id"] == "E2"
    # What holds for all labels is said once.
    assert image_set.manifest["min_similarity"] == -1.0 and image_set.manifest["hashes"]["encoder"] == "abc"


def test_tensorflow_datasets_opens_and_reads_the_set(built: Path) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(built / "i2e"))
    examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert builder.info.splits["train"].num_examples == 4
    by_id = {example["image_id"]: example for example in examples}
    assert sorted(by_id) == [b"a", b"b", b"c", b"h"]
    assert by_id[b"c"]["class_ids"].tolist() == [0, 1] and by_id[b"c"]["image"].shape == (16, 16, 3)


# Runs the command in a child that SIGKILL ends at the second commit record, when the file before it is whole: first in
# the one job, then, going on from there, in the other.
KILLED = """
import os, signal, sys
sys.path[:0] = {folders!r}
from pipeline import build_i2e as command
from pipeline.config import *
from pipeline.engine import annotate_unit
from pipeline.runners import RunnerConfig
from pipeline.stages import write_shards
from fakes import FakeLinker
command.model_stages = lambda models, config: [FakeLinker()]
for module, name in ((annotate_unit, "write_commit"), (write_shards, "commit")):
    if not (child := os.fork()):
        commit, count = getattr(module, name), [0]
        def commit_or_die(*args):
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            commit(*args)
        setattr(module, name, commit_or_die)
        command.build_i2e(command.{config!r})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    commits = [name for folder, _, names in os.walk({output!r}) for name in names
               if folder.endswith("commits") or name.endswith(".commit.json")]
    print("committed:", len(commits))
"""


def test_a_run_killed_in_each_of_its_jobs_ends_with_the_bytes_of_one_that_was_not(
    world: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(world, output="killed")
    tests = Path(__file__).parents[1]
    script = KILLED.format(folders=[str(tests.parent), str(tests)], config=config, output=config.output)
    # Another order of sets and dicts must not change a byte either.
    environment = {**os.environ, "PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [re.sub(r", \d+ rows in .*", "", line) for line in done.stdout.splitlines()] == [
        "plan: 3 files, 3 of them new",
        "annotate: 3 units, 0 finished before",
        "committed: 1",
        "annotate: 3 units, 1 finished before",
        "annotate: 3/3 units",
        "assemble: 3 shards",
        "committed: 4",  # three annotations, and one shard of the set
    ]
    assert not (world / "killed" / "manifest.json").exists()

    build_i2e(config)
    assert "annotate: 3 units, 3 finished before\nassemble: 3 shards\n" in capsys.readouterr().out
    killed, whole = digests(world / "killed"), digests(built / "i2e")
    differing = {name for name in killed.keys() | whole.keys() if killed.get(name) != whole.get(name)}
    # These say where the input lay.
    assert [name for name in differing if not re.fullmatch(r"manifest.json|units/(inputs/.*|command).json", name)] == []


def test_a_set_is_assembled_again_only_when_a_file_is_missing(
    world: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_i2e(settings(world))  # the input of the set that was copied here lay elsewhere
    assert "assemble: 3 shards\n" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (world / "i2e").rglob("*") if path.is_file()}
    assert build_i2e(settings(world)) == first
    assert "assemble: 3 shards, already assembled; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (world / "i2e").rglob("*") if path.is_file()} == before
    (world / "i2e" / "ledger" / "pairs-1.parquet").unlink()
    build_i2e(settings(world))
    assert digests(world / "i2e" / "ledger") == digests(built / "i2e" / "ledger")


def test_how_rows_are_batched_and_how_many_workers_there_are_make_nothing_again(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_i2e(settings(world))
    capsys.readouterr()
    config = AnnotateConfig(read=ReadConfig(rows_per_batch=2, stall_timeout_sec=5))
    assert build_i2e(settings(world, annotate=config, runner=RunnerConfig(workers=3))) == first
    printed = capsys.readouterr().out
    assert "annotate: 3 units, 3 finished before\n" in printed and "already assembled; nothing to do\n" in printed


def test_the_manifest_holds_the_config_of_both_jobs(built: Path) -> None:
    manifest = open_set(built / "i2e").manifest
    config = manifest["config"]
    assert manifest["kb"] == str(built / "kb")
    assert config["assemble"]["vocabulary"] == {"min_images_per_entity": 2}
    assert config["annotate"]["validate"] == {"min_side_px": 16, "max_image_megapixels": 64.0, "max_aspect_ratio": 50.0}


def test_the_settings_of_the_linker_reach_its_stages() -> None:
    config = AnnotateConfig(
        propose=ProposeConfig(num_candidates=3), disambiguate=DisambiguateConfig(probability_min=0.7)
    )
    stages = {
        stage.name: stage for stage in model_stages(Models(kb="kb", ner_model="tagger.pt", encoder="encoder"), config)
    }
    assert stages["propose_candidates"].num_candidates == 3
    assert stages["disambiguate"].weights.probability_min == stages["score_images"].weights.probability_min == 0.7


def test_finished_annotations_are_not_made_again_when_a_threshold_moves(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(world / "i2e" / "annotations")
    # With 1 image an entity, i keeps E3 as well.
    manifest = build_i2e(
        settings(world, assemble=AssembleConfig(select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=1)))
    )
    assert "3 units, 3 finished before" in capsys.readouterr().out
    assert digests(world / "i2e" / "annotations") == before
    assert manifest["num_classes"] == 3 and sum(shard["num_records"] for shard in manifest["shards"]) == 5


def test_an_input_is_read_for_its_fingerprint_only_when_its_time_or_size_is_new(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_i2e(settings(world, output="new"))
    hashed = []
    monkeypatch.setattr(
        "pipeline.sources.inputs.sha256_of_file", lambda path: hashed.append(Path(path).name) or "other"
    )
    os.utime(world / "pairs-1.tar", (1, 1))
    with pytest.raises(UserError):  # the thresholds of the defaults; the shards are annotated by then
        build_i2e(settings(world, output="new", assemble=AssembleConfig()))
    assert hashed == ["pairs-1.tar"]


def test_a_changed_input_shard_is_annotated_again_and_the_others_are_not(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(world / "pairs-2.tar", pair("z", "E1", 20))
    build_i2e(settings(world))
    assert (
        "annotate: 3 units, 2 finished before\n"
        "annotate: 1 units were annotated with other inputs, models, settings or another version of the program; they "
        "are annotated again\n"
    ) in capsys.readouterr().out
    assert ledger(world / "i2e")["pairs-2.tar", 0] == ("z", "kept", None)


def test_the_shards_and_the_vocabulary_have_the_bytes_recorded_in_the_golden_file(built: Path) -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "i2e.json").read_text())
    shards = digests(built / "i2e", "i2e-train.tfrecord-?????")
    assert shards == golden["shards"]
    assert (built / "i2e" / "vocabulary.jsonl").read_text().splitlines() == golden["vocabulary"]


def test_too_many_failed_rows_stop_the_run_after_the_ledger_is_written(world: Path) -> None:
    write_tar(world / "pairs-2.tar", [*pair("x", "FAIL", 21)])
    # 1 of 11 rows fails: 9.09 %, and the limit is 1 %.
    with pytest.raises(UserError, match=r"1 of 11 rows failed \(9.09 %, limit 1 %\).*--max-failed-share"):
        build_i2e(settings(world))
    assert ledger(world / "i2e")["pairs-2.tar", 0] == ("x", "failed", "timeout")
    assert not (world / "i2e" / "manifest.json").exists()


def test_a_truncated_shard_costs_one_failed_row_until_its_input_is_repaired(world: Path) -> None:
    path = world / "pairs-1.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: 512 * 9])  # g and h take 2 x (512 + 512) bytes each; then a's header
    config = AssembleConfig(select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=1), max_failed_share=0.5)
    build_i2e(settings(world, assemble=config))
    rows = ledger(world / "i2e")
    assert rows["pairs-1.tar", 1] == ("h", "kept", None)
    assert rows["pairs-1.tar", 2][1:] == ("failed", "truncated_shard")
    assert len(rows) == 9
    path.write_bytes(whole)
    build_i2e(settings(world, assemble=config))
    assert ledger(world / "i2e")["pairs-1.tar", 3] == ("i", "kept", None)


def test_a_picture_that_changed_between_the_jobs_is_a_failed_row(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def annotate_then_change(*args: Any, **kwargs: Any) -> Any:
        annotated = annotate(*args, **kwargs)
        # h gets another picture: its similarity is no longer known. g, a and i stay as they were.
        write_tar(
            world / "pairs-1.tar",
            [*pair("g", "E1", 1), *pair("h", "E2", 88), *pair("a", "E2", 9), *pair("i", "E3", 10)],
        )
        return annotated

    monkeypatch.setattr(command, "annotate", annotate_then_change)
    config = AssembleConfig(select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=2), max_failed_share=0.5)
    changed = settings(world, output="changed", assemble=config)
    manifest = build_i2e(changed)
    assert ledger(world / "changed")["pairs-1.tar", 1] == ("h", "failed", "image_changed")
    assert [shard["num_records"] for shard in manifest["shards"]] == [3, 0, 0]
    assert pq.read_table(world / "changed" / "provenance" / "pairs-1.parquet").num_rows == 0


def test_a_read_error_ends_the_run_with_one_line_and_costs_no_row(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(world / "pairs-2.tar", [*pair("y", "E1", 20), *pair("z", "E1", 21)])

    class FailingFile(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 512 * 4:  # in z
                raise OSError(errno.EIO, "Input/output error")
            return super().read(-1 if size is None else size)

    def open_failing(path: str, **_: object) -> io.FileIO:
        return FailingFile(path) if path.endswith("pairs-2.tar") else io.FileIO(path)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.sources.tar_members.FileSystems.open", open_failing)
        with pytest.raises(SystemExit) as stop:
            main(arguments(world))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: .*pairs-2.tar cannot be read \(.*Input/output error\); .* run again", line)
    main([*arguments(world), "--min-images-per-entity", "2"])
    assert "annotate: 3 units, 2 finished before" in capsys.readouterr().out
    assert ("pairs-2.tar", 1) in ledger(world / "i2e")


def test_a_stage_that_loses_a_row_stops_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "i2e" / "annotations" / "pairs-0.parquet").unlink()
    monkeypatch.setattr(command, "model_stages", lambda models, config: [LosingStage()])
    with pytest.raises(Exception, match="stage find_mentions returned 4 outcomes for 5 rows"):
        build_i2e(settings(world))


def test_annotations_that_were_changed_are_named_and_made_again_once_they_are_removed(world: Path) -> None:
    path = world / "i2e" / "annotations" / "pairs-0.parquet"
    whole = path.read_bytes()
    pq.write_table(pq.read_table(path).slice(0, 5), path, compression="zstd")
    (world / "i2e" / "i2e-train.tfrecord-00000").unlink()  # it is made again, with its ledger
    with pytest.raises(UserError, match="pairs-0.parquet was changed since it was committed; remove it, and run again"):
        build_i2e(settings(world))
    path.unlink()
    build_i2e(settings(world))
    assert path.read_bytes() == whole


def test_shards_whose_names_differ_behind_a_dot_are_two(world: Path) -> None:
    for name in ("laion.00000.tar", "laion.00001.tar"):
        write_tar(world / name, [*pair(f"{name}/a", "E1", 1), *pair(f"{name}/b", "E1", 2)])
    build_i2e(settings(world, input=str(world / "laion.*.tar"), output="dotted"))
    assert sorted(path.name for path in (world / "dotted" / "ledger").iterdir()) == [
        "laion.00000.parquet", "laion.00001.parquet",
    ]  # fmt: skip


def test_inputs_beside_the_set_are_left_alone_and_repeated_keys_are_reported(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world / "beside"
    folder.mkdir()
    for number in range(2):
        name = folder / f"i2e-{number}.tar"
        write_tar(name, [*pair("a", "E1", 2 * number), *pair("b", "E1", 2 * number + 1)])
    before = digests(folder)
    build_i2e(settings(world, input=str(folder / "i2e-*.tar"), output="beside"))
    assert digests(folder, "*.tar") == before
    assert "warning: 2 of 4 rows have the id of an earlier row and are left out" in capsys.readouterr().err


def test_tars_of_one_name_in_several_folders_and_names_that_look_like_patterns_are_mined(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("part0/pairs[1].tar", "part1/pairs[1].tar", "part1/pairs1.tar")):
        (world / name).parent.mkdir(exist_ok=True)
        (world / f"pairs-{number}.tar").rename(world / name)
    for pattern in ("part*/*.tar", "{part0,part1}/pairs[[]1].tar, part1/pairs1.tar"):
        build_i2e(settings(world, input=", ".join(str(world / part.strip()) for part in pattern.split(", "))))
    assert "already assembled" in capsys.readouterr().out
    names = [shard for shard, row in ledger(world / "i2e") if row == 0]  # the third tar has no rows
    assert sorted(names) == ["part0/pairs[1].tar", "part1/pairs[1].tar"]


def test_fields_of_the_input_pass_through_to_ledger_and_set(world: Path) -> None:
    import tensorflow_datasets as tfds

    def described(key: str, text: str, number: int, fields: dict[str, object]) -> list[tuple[str, bytes]]:
        return [*pair(key, text, number), (f"{key}.json", json.dumps(fields).encode())]

    write_tar(
        world / "urls.tar",
        [
            *described("a", "E1", 1, {"url": "http://a", "license": None, "width": 7}),
            *described("b", "E1", 2, {"url": "http://b", "license": "CC0"}),
            *described("c", "nothing", 3, {"url": "http://c"}),
            *described("d", "", 4, {"url": "http://d"}),
            *pair("e", "E1", 5),
        ],
    )
    config = AnnotateConfig(members=MembersConfig(keep_fields="url,license"))
    build_i2e(settings(world, input=str(world / "urls.tar"), output="urls", annotate=config))
    expected = {
        "a": [("url", "http://a"), ("license", None)],
        "b": [("url", "http://b"), ("license", "CC0")],
        "c": [("url", "http://c"), ("license", None)],
        "d": [("url", "http://d"), ("license", None)],
        "e": [("url", None), ("license", None)],
    }
    for folder in ("ledger", "annotations"):
        rows = [row for path in (world / "urls" / folder).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        assert {row["image_id"]: row["fields"] for row in rows} == expected
    records = [record for path in open_set(world / "urls").shard_paths for record in ShardReader(path)]
    assert {record.image_id: list(record.fields) for record in records} == {key: expected[key] for key in "abe"}
    builder = tfds.builder_from_directory(str(world / "urls"))
    texts = [json.loads(record["fields"]) for record in tfds.as_numpy(builder.as_dataset(split="train"))]
    assert sorted(str(fields["url"]) for fields in texts) == ["None", "http://a", "http://b"]
    assert "fields" not in tfds.builder_from_directory(str(world / "i2e")).info.features


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(world: Path) -> None:
    before = digests(world / "i2e")
    with output_lock(str(world / "i2e"), command="build_i2e"):
        with pytest.raises(UserError, match="--output .*i2e is in use by build_i2e .process .*; wait for it .--wait."):
            build_i2e(settings(world))
    assert digests(world / "i2e") == before
    build_i2e(settings(world))


def test_no_label_left_is_an_error_that_says_what_to_lower(world: Path) -> None:
    config = AssembleConfig(select=SelectLabelsConfig(min_similarity=1.0))
    with pytest.raises(UserError, match="no image of 10 rows kept a label.*lower --min-similarity"):
        build_i2e(settings(world, assemble=config))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("p0.v1.png", png(1)), ("p0.v2.png", png(2)), ("p1.txt", b"E1"), ("p2.txt", b"E1")],
            "2 missing_image, 1 several_images; .*; --image-member names the pictures' endings",
        ),
        (
            [("a.png", png(1)), ("a.json", b"{}"), ("b.png", png(2)), ("b.json", b"{}"), ("c.png", png(2))],
            "2 missing_text_field, 1 missing_text; --text-field names the field of the .json that holds the text",
        ),
    ],
    ids=["endings", "field"],
)
def test_files_that_do_not_form_rows_are_an_error_that_says_how_to_pack_them(
    world: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(world / "badly-packed.tar", members)
    with pytest.raises(UserError, match=f"no row could be labelled: {message}; see .*ledger$"):
        build_i2e(settings(world, input=str(world / "badly-packed.tar"), output="none"))


def test_halves_of_rows_that_lie_far_apart_stop_the_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair(f"p{row}", "E1 E2", row) for row in range(100)]
    members = [member for one in pairs[2:] for member in one]
    apart = [pairs[0][0], *members, pairs[0][1]]  # one row's text behind 98 others
    write_tar(world / "apart.tar", [pairs[1][0], *apart, pairs[1][1]])
    monkeypatch.setattr("pipeline.sources.webdataset.JOIN_ROWS", 50)
    # Two pictures without text, 98 rows, two texts.
    message = "2 of 102 rows are second halves of others .1.96 %, limit 1 %; .* pack it with: tar --sort=name"
    with pytest.raises(UserError, match=message):
        build_i2e(settings(world, input=str(world / "apart.tar"), output="none"))
    assert [reason for _, _, reason in ledger(world / "none").values()].count("members_apart") == 2


def test_rows_without_a_name_are_an_error_that_does_not_speak_of_thresholds(world: Path) -> None:
    # One row of two lacks its text: not more than half, so the layout is not to blame.
    write_tar(world / "nameless.tar", [*pair("a", "nothing", 1), pair("b", "E1", 2)[0]])
    with pytest.raises(
        UserError, match="^no row could be labelled: 1 missing_text, 1 no_mention; see .*ledger; change"
    ):
        build_i2e(settings(world, input=str(world / "nameless.tar"), output="none"))


def test_input_without_a_row_is_an_error_that_says_so(world: Path) -> None:
    with pytest.raises(UserError, match="^the input has 0 rows, at least 1 is needed; give tars"):
        build_i2e(settings(world, input=str(world / "pairs-2.tar"), output="none"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runner", "spark"], "unknown runner 'spark'; choose one of direct, flink, dataflow"),
        (
            [
                "--input",
                "{world}/pairs-2.tar",
                "--output",
                "{world}/no",
                "--runner",
                "flink",
                "--job-endpoint",
                "localhost:1",
            ]
            + ["--", "--job_server_timeout=1"],
            "--runner flink: no job server answers at --job-endpoint; start a cluster with make flink-up",
        ),
        (["--dry-run"], "--dry-run is for --runner dataflow, and the runner is direct; leave it out"),
        (["--runner", "dataflow"], "--runner dataflow needs --project; give it, or choose --runner direct"),
        (["--workers", "0"], "--workers is 0; give at least 1"),
        (["--min-probability", "2"], "--min-probability is 2.0; give a value from 0.0 to 1.0"),
        (["--min-images-per-entity", "0"], "--min-images-per-entity is 0; the least allowed is 1"),
        (["--num-candidates", "0"], "--num-candidates is 0; the least allowed is 1"),
        (["--probability-min", "2"], "--probability-min is 2.0; give a value from 0.0 to 1.0"),
        (["--batch-size", "0"], "--batch-size is 0; the least allowed is 1"),
        (["--max-image-megapixels", "200"], "--max-image-megapixels is 200.0; give a value from 0.001 to 178.0"),
        (["--input", "{world}/none-*.tar"], "--input .* matches no file"),
        (["--max-aspect-ratio", "0"], "--max-aspect-ratio is 0.0; give a value from 1"),
        (["--kb", "{world}/none"], "none: no finished knowledge base there"),
        (["--kb", "{world}/empty"], "empty: the knowledge base is empty, at least 1 entity"),
        (["--encoder", "{world}/none"], "--encoder .* holds no encoder"),
        (["--ner-model", "{world}/none.pt"], "--ner-model .* is missing; write one with"),
        (["--output", "{world}/tagger.pt/i2e"], "--output .* lies below a file"),
        (["--output", "gs://bucket/set"], r"pip install apache-beam\[gcp\]. Path specified: gs://bucket/set"),
        (["--output", "{world}/old"], "old/manifest.json has format version 0, this code writes 1"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(
    world: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (world / "old").mkdir()
    (world / "old" / "manifest.json").write_text('{"format_version": 0}')
    (world / "empty").mkdir()
    (world / "empty" / "manifest.json").write_text(f'{{"format_version": {FORMAT_VERSION}, "num_entities": 0}}')
    with pytest.raises(SystemExit) as stop:
        main([*arguments(world), *(flag.format(world=world) for flag in flags)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and re.search(message, lines[0]), lines


@pytest.mark.parametrize(
    ("function", "number", "message"),
    [
        ("os.makedirs", errno.EROFS, "is read-only; choose another --output"),
        ("pipeline.stages.write_shards.write_table", errno.ENOSPC, "is full; free some space"),
        ("pipeline.engine.annotate_unit.same_bytes_file", errno.ENOSPC, "is full; free some space"),
    ],
)
def test_a_read_only_or_full_output_ends_with_one_line_and_nothing_that_counts(
    world: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(function, fail)
    with pytest.raises(SystemExit) as stop:
        main([*arguments(world), "--output", str(world / "new")])
    assert stop.value.code == 2 and not caplog.records
    assert capsys.readouterr().err == f"error: --output {world}/new {message}\n"
    assert not (world / "new" / "manifest.json").exists()
    assert not list((world / "new").glob("i2e-*.commit.json"))


def test_each_kind_of_bad_row_is_counted_with_its_reason_and_the_run_goes_on(world: Path) -> None:
    (world / "bad").mkdir()
    reasons = write_bad_tars(world / "bad", good="E1")
    before = sorted(world.rglob("*"))
    config = AssembleConfig(select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=1), max_failed_share=0.5)
    manifest = build_i2e(settings(world, input=str(world / "bad" / "?.tar"), output="out", assemble=config))
    assert [shard["num_records"] for shard in manifest["shards"]] == [4, 0, 1]
    ends = collections.Counter(reason or outcome for _, outcome, reason in ledger(world / "out").values())
    assert ends == {**reasons, "kept": 5}
    # Members are never written under their own names: "../../up", "/absolute".
    assert [path for path in sorted(world.rglob("*")) if world / "out" not in (path, *path.parents)] == before
    assert not list(Path("/").glob("absolute*")) and not list(world.parent.glob("up*"))


def test_an_output_that_takes_no_more_at_any_write_of_annotating_is_named_and_the_next_run_goes_on(
    world: Path, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = ((errno.ENOSPC, "is full; free some space"), (errno.EROFS, "is read-only; choose another --output"))
    num_left = num_writes = 0
    failed: set[str] = set()
    create, write = FileSystems.create, HashedFile.write

    def check(what: str) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes > num_left:
            failed.add(what)
            number = errors[num_left % 2][0]
            raise OSError(number, os.strerror(number))

    def create_or_fail(path: str, *args: Any, **kwargs: Any) -> Any:
        check(Path(path).parent.name)
        return create(path, *args, **kwargs)

    def write_or_fail(file: HashedFile, content: bytes) -> int:
        if file.size_bytes == 0 or content == b"PAR1":  # the first write and the last
            check("annotations")
        return write(file, content)

    monkeypatch.setattr(FileSystems, "create", create_or_fail)
    monkeypatch.setattr(HashedFile, "write", write_or_fail)
    flags = [*arguments(world), "--input", str(world / "pairs-0.tar"), "--output", str(world / "new")]
    for num_left in range(30):
        num_writes = 0
        try:
            main([*flags, "--only-annotate"])
            break
        except SystemExit as stop:
            assert stop.code == 2
        assert capsys.readouterr().err == f"error: --output {world}/new {errors[num_left % 2][1]}\n"
    assert failed == {"units", "inputs", "pending", "notes", "annotations", "commits"}
    (path,) = (world / "new" / "annotations").iterdir()
    assert path.read_bytes() == (built / "i2e" / "annotations" / "pairs-0.parquet").read_bytes()


def written(folder: Path, before: dict[Path, int]) -> list[str]:
    """Returns the names of the files of shards, ledger and provenance whose time differs from `before`."""
    now = times(folder)
    assert now.keys() == before.keys()
    return sorted(str(path.relative_to(folder)) for path, time in now.items() if time != before[path])


def times(folder: Path) -> dict[Path, int]:
    kinds = ("i2e-train.tfrecord-?????", "ledger/*", "provenance/*")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in folder.glob(kind)}


def test_a_moved_threshold_writes_only_the_shards_that_differ(world: Path, built: Path) -> None:
    build_i2e(settings(world))
    before = times(world / "i2e")
    # f's label has the probability 0.2, and needs an E1 that others have more of: classes and counts of others stay.
    select = SelectLabelsConfig(min_similarity=-1.0, min_probability=0.1)
    changed = AssembleConfig(select=select, vocabulary=VocabularyConfig(min_images_per_entity=2))
    build_i2e(settings(world, assemble=changed))
    expected = ["i2e-train.tfrecord-00000", "ledger/pairs-0.parquet", "provenance/pairs-0.parquet"]
    assert written(world / "i2e", before) == expected
    assert ledger(world / "i2e")["pairs-0.tar", 5] == ("f", "kept", None)
    # And back: the bytes of the first run, and of a run without a history.
    build_i2e(settings(world))
    assert digests(world / "i2e", "*.parquet") == digests(built / "i2e", "*.parquet")
    assert digests(world / "i2e", "*tfrecord-?????") == digests(built / "i2e", "*tfrecord-?????")


def test_one_more_input_leaves_the_shards_of_the_others(world: Path) -> None:
    build_i2e(settings(world))
    before = times(world / "i2e")
    # One more picture of E1: it stays the first class.
    write_tar(world / "pairs-3.tar", pair("n", "E1", 30))
    manifest = build_i2e(settings(world))
    assert [shard["num_records"] for shard in manifest["shards"]] == [3, 1, 0, 1]
    assert {path: time for path, time in times(world / "i2e").items() if path in before} == before
    # What the set no longer has is gone.
    (world / "pairs-3.tar").unlink()
    (world / "i2e" / "i2e-train.tfrecord-00007-of-00009").write_bytes(b"of an earlier version")
    build_i2e(settings(world))
    assert times(world / "i2e") == before
    assert [path.name for path in (world / "i2e").glob("*-of-*")] == []
    assert sorted(path.name for path in (world / "i2e" / "assembly" / "labels").iterdir()) == [
        "pairs-0.arrow", "pairs-1.arrow", "pairs-2.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spoil",
    [
        lambda set_: (set_ / "i2e-train.tfrecord-00001").write_bytes(b"cut"),
        lambda set_: (set_ / "i2e-train.tfrecord-00001.index").write_bytes(b""),
        lambda set_: (set_ / "ledger" / "pairs-1.parquet").write_bytes(b"cut"),
        lambda set_: (set_ / "provenance" / "pairs-1.parquet").unlink(),
        lambda set_: (set_ / "i2e-train.tfrecord-00001.commit.json").write_text("{"),
        lambda set_: (set_ / "assembly" / "labels" / "pairs-1.arrow").write_bytes(b"ARROW1"),
        lambda set_: (set_ / "assembly" / "classes.bin").write_bytes(b""),
    ],
)
def test_what_a_kill_cut_is_made_again_and_nothing_else(world: Path, built: Path, spoil: Any) -> None:
    build_i2e(settings(world))
    before = times(world / "i2e")
    (world / "i2e" / "manifest.json").unlink()  # a run that was killed has none
    spoil(world / "i2e")
    build_i2e(settings(world))
    expected = {"i2e-train.tfrecord-00001", "ledger/pairs-1.parquet", "provenance/pairs-1.parquet"}
    assert expected.issuperset(written(world / "i2e", before))
    for pattern in ("*.parquet", "*tfrecord-?????", "*.index", "assembly/*", "vocabulary.jsonl"):
        assert digests(world / "i2e", pattern) == digests(built / "i2e", pattern)


def test_workers_change_no_byte(world: Path, built: Path) -> None:
    for path in (*(world / "i2e").glob("i2e-train*"), world / "i2e" / "manifest.json"):
        path.unlink()
    shutil.rmtree(world / "i2e" / "assembly")
    build_i2e(settings(world, runner=RunnerConfig(workers=2)))
    for pattern in ("*.parquet", "*tfrecord-?????", "*.index", "assembly/*", "vocabulary.jsonl", "funnel.json"):
        assert digests(world / "i2e", pattern) == digests(built / "i2e", pattern)


def test_compressed_tars_and_parts_of_a_tar_give_the_records_of_plain_whole_ones(world: Path, built: Path) -> None:
    (world / "packed").mkdir()
    for path in world.glob("pairs-*.tar"):
        (world / "packed" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    build_i2e(settings(world, input=str(world / "packed" / "*"), output="of-packed"))
    assert digests(world / "of-packed", "*tfrecord-?????") == digests(built / "i2e", "*tfrecord-?????")
    build_i2e(settings(world, output="of-parts", units=UnitConfig(unit_rows=2)))
    of_whole, of_parts = ([record for path in open_set(folder).shard_paths for record in ShardReader(path)]
                          for folder in (built / "i2e", world / "of-parts"))  # fmt: skip
    assert of_parts == of_whole and len(of_whole) == 4


def encoded(form: str, mode: str = "RGB", *, size: tuple[int, int] = (20, 40), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, None if mode in ("1", "L", "I;16") else (200, 10, 60, 255)[: len(mode)]).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def test_every_picture_decodes_in_tensorflow_datasets_whatever_the_input_was(world: Path) -> None:
    import tensorflow_datasets as tfds

    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    pictures = {
        "jpeg": encoded("JPEG"),
        "turned": encoded("JPEG", exif=turned.tobytes()),
        "cmyk": encoded("JPEG", "CMYK"),
        "webp": encoded("WEBP"),
        "gif": encoded("GIF"),
        "bmp": encoded("BMP"),
        "deep": encoded("PNG", "I;16"),
        "alpha": encoded("PNG", "RGBA"),
        "large": encoded("PNG", size=(64, 200)),
    }
    members = [
        member for name, picture in pictures.items() for member in ((f"{name}.jpg", picture), (f"{name}.txt", b"E1"))
    ]
    write_tar(world / "kinds.tar", members)
    config = AssembleConfig(
        select=KEEP_ALL, vocabulary=VocabularyConfig(min_images_per_entity=1), store=StoreConfig(max_side_px=100)
    )
    build_i2e(settings(world, input=str(world / "kinds.tar"), output="kinds", assemble=config))
    builder = tfds.builder_from_directory(str(world / "kinds"))
    found = {one["image_id"].decode(): one for one in tfds.as_numpy(builder.as_dataset(split="train"))}
    sizes = {name: one["image"].shape for name, one in found.items()}
    usual = dict.fromkeys(pictures, (40, 20, 3))
    assert sizes == {**usual, "turned": (20, 40, 3), "large": (100, 32, 3)}
    assert all((one["height"], one["width"]) == one["image"].shape[:2] for one in found.values())
    records = {record.image_id: record for record in ShardReader(open_set(world / "kinds").shard_paths[0])}
    assert records["jpeg"].image == pictures["jpeg"] and records["alpha"].image == pictures["alpha"]


def vocabulary(folder: Path) -> list[tuple[str, int]]:
    return [(entry.entity_id, entry.image_count) for entry in open_set(folder).vocabulary]


def test_a_set_that_continues_another_keeps_its_ids_and_threshold_and_the_shards_of_its_inputs(world: Path) -> None:
    limits = VocabularyConfig(min_images_per_entity=2)
    first = AssembleConfig(select=SelectLabelsConfig(keep_share=1.0), vocabulary=limits)
    before_manifest = build_i2e(settings(world, assemble=first))
    assert vocabulary(world / "i2e") == [("E1", 3), ("E2", 2)]
    before = times(world / "i2e")
    # Its name comes first. E4 is new, and now the most frequent; E3 has its second image.
    new = [pair(f"n{shade}", "E4", shade) for shade in range(40, 45)]
    write_tar(world / "pairs--new.tar", [member for row in [*new, pair("o", "E3", 50)] for member in row])
    second = AssembleConfig(select=SelectLabelsConfig(keep_share=0.5), vocabulary=limits)
    for _ in range(2):  # again: it continues itself, and stays
        manifest = build_i2e(settings(world, assemble=second, from_set=str(world / "i2e")))
        assert manifest["min_similarity"] == before_manifest["min_similarity"]
        assert [shard["unit"] for shard in manifest["shards"]][:3] == ["pairs-0", "pairs-1", "pairs-2"]
        found = vocabulary(world / "i2e")
        assert found[:2] == [("E1", 3), ("E2", 2)] and {one[0] for one in found[2:]} == {"E3", "E4"}
        now = times(world / "i2e")
        kept = [path for path, time in before.items() if now[path] == time]
        # i shows E3, which is a class now: the shard of pairs-1 is another one.
        assert sorted(before.keys() - kept) == sorted(
            path for path in before if "pairs-1" in path.name or path.name.endswith("00001")
        )
    # An own set with the same inputs is another one: E4 comes first there.
    build_i2e(settings(world, output="alone", assemble=first))
    assert vocabulary(world / "alone")[0] == ("E4", 5)


def test_a_continued_set_elsewhere_copies_equal_shards_and_reads_no_input_of_theirs(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_i2e(settings(world))
    shutil.copytree(world / "i2e" / "annotations", world / "next" / "annotations")
    monkeypatch.setattr("pipeline.stages.write_shards.read_pictures", lambda *_: pytest.fail("the input is read"))
    build_i2e(settings(world, output="next", from_set=str(world / "i2e")))
    for pattern in ("*.parquet", "*tfrecord-?????", "*.index", "vocabulary.jsonl", "i2e-*.commit.json"):
        assert digests(world / "next", pattern) == digests(world / "i2e", pattern)


def test_an_entity_that_becomes_rare_keeps_its_class_with_no_images(world: Path) -> None:
    build_i2e(settings(world))
    (world / "pairs-1.tar").unlink()  # with h, the second image of E2
    build_i2e(settings(world, from_set=str(world / "i2e")))
    assert vocabulary(world / "i2e") == [("E1", 3), ("E2", 0)]
    record = ShardReader(open_set(world / "i2e").shard_paths[0])[2]
    assert (record.image_id, record.entity_ids, record.class_ids) == ("c", ("E1",), (0,))


def test_an_entity_that_was_redirected_keeps_its_class_under_its_new_id(world: Path) -> None:
    build_i2e(settings(world))
    assert vocabulary(world / "i2e") == [("E1", 3), ("E2", 2)]
    # In a new knowledge base E1 has become E7, and the new rows say so; one of them shows E3, which i shows as well.
    with KnowledgeBaseWriter(str(world / "next-kb")) as writer:
        for number in (0, *range(2, 9)):
            writer.add(Entity(entity_id=f"E{number}", label=f"Entity {number}", description=f"the {number}"))
        writer.add_redirect("E1", "E7")
        writer.commit(source="fake", source_sha256="0")
    write_tar(world / "pairs-0.tar", [*pair("a", "E7", 1), *pair("b", "E7", 2), *pair("c", "E7 and E2", 3)])
    write_tar(world / "pairs-3.tar", [*pair("n", "E7", 30), *pair("o", "E3", 31)])
    build_i2e(settings(world, kb=str(world / "next-kb"), from_set=str(world / "i2e")))
    assert vocabulary(world / "i2e") == [("E7", 4), ("E2", 2), ("E3", 2)]
    assert open_set(world / "i2e").vocabulary[0].name == "Entity 7"
    classes = {
        record.image_id: (record.entity_ids, record.class_ids)
        for path in open_set(world / "i2e").shard_paths
        for record in ShardReader(path)
    }
    assert classes["a"] == classes["n"] == (("E7",), (0,)) and classes["c"] == (("E2", "E7"), (1, 0))


def test_a_continued_set_that_was_killed_goes_on_from_the_earlier_one(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_i2e(settings(world))
    write_tar(world / "pairs-3.tar", [*pair("n", "E3", 30), *pair("o", "E3", 31), *pair("p", "E3", 32)])
    continued = settings(world, from_set=str(world / "i2e"))

    def die(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.write_shards.commit", die)
        with pytest.raises(RuntimeError, match="killed"):
            build_i2e(continued)
    assert not (world / "i2e" / "manifest.json").exists()
    build_i2e(continued)
    assert vocabulary(world / "i2e") == [("E1", 3), ("E2", 2), ("E3", 4)]
    assert not list((world / "i2e" / "assembly" / "earlier").iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--from-set .*/none holds no finished set \(manifest.json is missing\); give the folder"),
        (
            {"kind": "pairs", "format_version": 1, "shards": []},
            "is not that of an Image-to-Entities set of this version",
        ),
        (
            {"kind": "i2e", "format_version": 1, "shards": [{}]},
            "is not that of an Image-to-Entities set of this version",
        ),
    ],
)
def test_what_is_no_earlier_set_is_refused(world: Path, content: dict[str, Any] | None, message: str) -> None:
    if content is not None:
        (world / "none").mkdir()
        (world / "none" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build_i2e(settings(world, from_set=str(world / "none")))
