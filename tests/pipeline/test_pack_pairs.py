"""Raw pairs as a set."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import MembersConfig, PackConfig, StoreConfig, ValidateConfig
from pipeline.pack_pairs import PackPairsConfig, main, pack_pairs
from pipeline.runners import RunnerConfig
from pipeline.schema import UserError
from pipeline.shard_format import ShardReader, open_set
from tests.fakes import pair, png, write_bad_tars, write_tar

ONE_WORKER = RunnerConfig(workers=1)  # this process


def test_a_set_of_pairs_has_the_usable_rows_in_order_and_no_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "s0.tar", [*pair("a", "one", 1), ("b.png", png(2)), *pair("c", "three", 3)])
    write_tar(tmp_path / "s1.tar", [("d.png", b"broken"), ("d.txt", b"four"), *pair("e", "five", 5)])
    # Two shards, in two processes.
    config = PackPairsConfig(
        input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out"), runner=RunnerConfig(workers=2)
    )
    manifest = pack_pairs(config)
    assert manifest["kind"] == "pairs" and manifest["rejections"] == {"missing_text": 1, "unreadable_image": 1}
    pairs = open_set(tmp_path / "out")
    records = [record for path in pairs.shard_paths for record in ShardReader(path)]
    assert [(record.image_id, record.text, record.width_px) for record in records] == [
        ("a", "one", 16),
        ("c", "three", 16),
        ("e", "five", 16),
    ]
    assert records[0].image == png(1) and records[0].entity_ids == ()


def test_a_picture_that_is_cut_short_is_left_out_and_counted(tmp_path: Path) -> None:
    cut = png(2)[:50]  # its header is whole
    write_tar(tmp_path / "s0.tar", [*pair("a", "one", 1), ("b.png", cut), ("b.txt", b"two")])
    manifest = pack_pairs(PackPairsConfig(input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out")))
    assert manifest["rejections"] == {"broken_image": 1}
    assert open_set(tmp_path / "out").num_records == 1


def test_shards_packed_before_are_not_packed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "s0.tar", pair("a", "one", 1))
    config = PackPairsConfig(input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out"))
    first = pack_pairs(config)
    assert pack_pairs(config) == first
    assert "1 shards, 1 finished before" in capsys.readouterr().out


def test_shards_packed_by_other_code_are_packed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "s0.tar", pair("a", "one", 1))
    config = PackPairsConfig(input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out"))
    pack_pairs(config)
    monkeypatch.setattr("pipeline.jobs.pack.code_fingerprint", lambda paths: "other")
    capsys.readouterr()
    pack_pairs(config)
    assert capsys.readouterr().out == "pack_pairs: 1 shards, 0 finished before\n"


def test_one_more_tar_packs_no_other_again_and_what_is_stale_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "c"):
        write_tar(tmp_path / f"{name}.tar", pair(name, "one", 1))
    config = PackPairsConfig(input=str(tmp_path / "*.tar"), output=str(tmp_path / "out"), runner=ONE_WORKER)
    pack_pairs(config)
    (tmp_path / "out" / "pairs-train.tfrecord-00000").touch()  # of an earlier version
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("pairs-?-*")}
    assert len(before) == 6  # two shards, each with index and commit record
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "a.tar", pair("a", "one", 1))
    capsys.readouterr()
    pack_pairs(dataclasses.replace(config, input=f"{tmp_path}/*.tar,{tmp_path}/more/*.tar"))
    assert "3 shards, 2 finished before" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == 3 * 3 + 1
    records = [record for path in open_set(tmp_path / "out").shard_paths for record in ShardReader(path)]
    assert sorted(record.image_id for record in records) == ["a", "b", "c"]
    # Without b, with another c.
    (tmp_path / "b.tar").unlink()
    write_tar(tmp_path / "c.tar", pair("d", "one", 1))
    pack_pairs(config)
    assert [path.name[:7] for path in (tmp_path / "out").glob("pairs*tfrecord")] == ["pairs-c"]
    (record,) = ShardReader(open_set(tmp_path / "out").shard_paths[0])
    assert record.image_id == "d"


def test_pictures_are_stored_as_sets_store_them(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "BMP")
    write_tar(tmp_path / "s.tar", [("a.bmp", buffer.getvalue()), ("a.en.txt", b"text"), ("a.de.txt", b"Text")])
    pack_config = PackConfig(members=MembersConfig(text_member="de.txt"), store=StoreConfig(max_side_px=20))
    pack_pairs(PackPairsConfig(input=str(tmp_path / "s.tar"), output=str(tmp_path / "out"), pack=pack_config))
    (record,) = ShardReader(open_set(tmp_path / "out").shard_paths[0])
    assert (record.text, record.width_px, record.height_px) == ("Text", 20, 10)
    assert Image.open(io.BytesIO(record.image)).format == "PNG"


def test_each_kind_of_bad_row_is_counted_with_its_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    reasons = write_bad_tars(tmp_path, good="good")
    config = PackPairsConfig(input=str(tmp_path / "?.tar"), output=str(tmp_path / "out"), runner=ONE_WORKER)
    manifest = pack_pairs(config)
    assert manifest["rejections"] == reasons
    assert [shard["num_records"] for shard in manifest["shards"]] == [4, 0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s.tar", "t.tar", "u.tar"]


def test_halves_of_rows_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.webdataset.JOIN_ROWS", 0)
    write_tar(tmp_path / "s.tar", [("a.png", png(1)), *pair("b", "text", 2), ("a.txt", b"text")])
    with pytest.raises(UserError, match="1 of 3 rows are second halves of others .* tar --sort=name"):
        pack_pairs(PackPairsConfig(input=str(tmp_path / "s.tar"), output=str(tmp_path / "out")))


def test_the_size_of_pictures_has_a_range(tmp_path: Path) -> None:
    config = PackPairsConfig(output=str(tmp_path), pack=PackConfig(validate=ValidateConfig(max_image_megapixels=200)))
    with pytest.raises(UserError, match="--max-image-megapixels is 200; give a value from 0.001 to 178.0"):
        pack_pairs(config)


@pytest.mark.parametrize(
    ("members", "message"),
    [([("b.png", b"x")], "holds no usable pair (0, at least 1 is needed): {'missing_text': 1}"), (None, "no file")],
)
def test_bad_input_ends_with_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: list | None, message: str
) -> None:
    if members is not None:
        write_tar(tmp_path / "s0.tar", members)
    with pytest.raises(SystemExit) as stop:
        main(["--input", str(tmp_path / "s*.tar"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_an_error_of_a_worker_ends_with_one_line_and_no_traceback(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tar(tmp_path / "s0.tar", pair("a", "one", 1))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("pipeline.pack_pairs.prepare_output", lambda *_, **__: (tmp_path / "s0.tar").unlink())
    with pytest.raises(SystemExit) as stop:
        main(["--input", str(tmp_path / "s*.tar"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2 and not caplog.records
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/s0.tar cannot be read (")
    assert line.endswith("; check that it exists, and run again")
