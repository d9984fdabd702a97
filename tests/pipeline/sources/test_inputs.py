"""Which files are read, and what identifies their content."""

from __future__ import annotations

from pathlib import Path

from pipeline.sources.inputs import file_fingerprint


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
