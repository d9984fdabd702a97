"""Which files are read, and what identifies their content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.sources.inputs import file_fingerprint, match_inputs
from pipeline.storage.commits import commit


def test_a_remote_file_is_another_when_its_size_or_its_time_differs() -> None:
    fingerprints = {
        file_fingerprint("gs://bucket/x.tar", size_bytes, updated_sec)
        for size_bytes, updated_sec in ((5, 1.0), (5, 1.001), (6, 1.0))
    }
    assert fingerprints == {"5-1.000", "5-1.001", "6-1.000"}


def test_a_local_file_is_identified_by_its_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    # SHA-256 of "abc", as FIPS 180-2 gives it.
    assert file_fingerprint(str(tmp_path / "a.tar"), 3, 1.0) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("change", ["nothing", "time", "size"])
def test_the_recorded_fingerprint_serves_only_a_file_of_the_same_size_and_time(tmp_path: Path, change: str) -> None:
    path, output = tmp_path / "a.tar", str(tmp_path / "a.parquet")
    path.write_bytes(b"abc")
    os.utime(path, (100, 100))
    (tmp_path / "a.parquet").write_bytes(b"made")
    (shard,) = match_inputs(str(path))
    commit(output, {"input": shard.stamp, "fingerprint": {"input": "recorded"}})
    if change == "time":
        os.utime(path, (101, 101))
    elif change == "size":
        path.write_bytes(b"abcd")
        os.utime(path, (100, 100))
    (again,) = match_inputs(str(path), output_of=lambda name: output)
    assert (again.fingerprint == "recorded") == (change == "nothing")
