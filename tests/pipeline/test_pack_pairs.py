"""Raw pairs as a set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ValidateConfig
from pipeline.pack_pairs import PackPairsConfig, main, pack_pairs
from pipeline.runners import RunnerConfig
from pipeline.schema import UserError
from pipeline.shard_format import ShardReader, open_set
from tests.fakes import pair, png, write_tar


def test_a_set_of_pairs_has_the_usable_rows_in_order_and_no_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "s0.tar", [*pair("a", "one", 1), ("b.png", png(2)), *pair("c", "three", 3)])
    write_tar(tmp_path / "s1.tar", [("d.png", b"broken"), ("d.txt", b"four"), *pair("e", "five", 5)])
    manifest = pack_pairs(PackPairsConfig(input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out")))
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


def test_shards_packed_by_other_code_are_packed_again_in_jobs_of_the_given_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s0", "s1", "s2"):
        write_tar(tmp_path / f"{name}.tar", pair(name, "one", 1))
    config = PackPairsConfig(
        input=str(tmp_path / "s*.tar"), output=str(tmp_path / "out"), runner=RunnerConfig(shards_per_job=2)
    )
    pack_pairs(config)
    monkeypatch.setattr("pipeline.jobs.pack.code_fingerprint", lambda paths: "other")
    capsys.readouterr()
    pack_pairs(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pack_pairs: 3 shards, 0 finished before"
    assert [line.rsplit(",", 1)[0] for line in lines[1:]] == ["pack_pairs: 2/3 shards", "pack_pairs: 3/3 shards"]


def test_the_size_of_pictures_has_a_range(tmp_path: Path) -> None:
    config = PackPairsConfig(output=str(tmp_path), validate=ValidateConfig(max_image_megapixels=200))
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
