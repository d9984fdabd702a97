"""Records whose names say which annotations are finished."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.schema import UserError
from pipeline.storage import beam_files, unit_commits
from pipeline.storage.beam_files import list_folder, same_bytes_file
from pipeline.storage.unit_commits import (
    UnitCommit,
    annotation_path,
    commits_beside,
    delete_commits,
    read_annotations,
    read_commits,
    read_outcomes,
    write_commit,
)


def commit_of(unit: str, *, size_bytes: int = 5) -> UnitCommit:
    return UnitCommit(unit=unit, key="k" * 16, sha256="5" * 16, size_bytes=size_bytes, num_rows=3)


def annotations(output: Path, unit: str) -> None:
    path = Path(annotation_path(str(output), unit))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"whole")


def test_a_listing_gives_back_what_was_committed_dots_in_names_included(tmp_path: Path) -> None:
    output = str(tmp_path)
    for unit in ("pairs-0", "laion.00000@000010000"):
        annotations(tmp_path, unit)
        write_commit(output, commit_of(unit), {"dropped/read/missing_text": 1, "annotated": 2})
    assert read_commits(output) == {
        "laion.00000@000010000": [commit_of("laion.00000@000010000")],
        "pairs-0": [commit_of("pairs-0")],
    }
    assert read_outcomes(output, commit_of("pairs-0")) == {"annotated": 2, "dropped/read/missing_text": 1}
    record = tmp_path / "units" / "commits" / f"pairs-0.{'k' * 16}.{'5' * 16}.5.3.json"
    assert record.read_bytes() == b'{"annotated":2,"dropped/read/missing_text":1}'
    delete_commits(output, [commit_of("pairs-0")])
    assert list(read_commits(output)) == ["laion.00000@000010000"]


def test_a_record_without_annotations_and_a_name_that_is_not_a_record_count_for_nothing(tmp_path: Path) -> None:
    write_commit(str(tmp_path), commit_of("gone"), {})
    annotations(tmp_path, "there")
    for name in ("there.json", "there.a.b.c.3.json", "there.a.b.5.d.json", f"there.{'k' * 16}.{'5' * 16}.5.3.json.tmp"):
        (tmp_path / "units" / "commits" / name).touch()
    assert read_commits(str(tmp_path)) == {}


def test_of_a_remote_folder_the_sizes_must_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations(tmp_path, "a")
    annotations(tmp_path, "b")
    write_commit(str(tmp_path), commit_of("a"), {})
    write_commit(str(tmp_path), commit_of("b", size_bytes=6), {})

    def list_with_sizes(folder: str) -> dict[str, int | None]:
        return {path.name: path.stat().st_size for path in Path(folder).iterdir()}

    monkeypatch.setattr(unit_commits, "list_folder", list_with_sizes)
    assert list(read_commits(str(tmp_path))) == ["a"]


def test_the_state_of_many_units_takes_two_listings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        annotations(tmp_path, f"u{number}")
        write_commit(str(tmp_path), commit_of(f"u{number}"), {})
    listed = []
    monkeypatch.setattr(unit_commits, "list_folder", lambda folder: listed.append(folder) or list_folder(folder))
    monkeypatch.delattr(beam_files, "FileSystems")  # nothing else is called
    assert len(read_commits(str(tmp_path))) == 50 and len(listed) == 2


def test_records_beside_the_known_ones_are_found_in_order_with_or_without_annotations(tmp_path: Path) -> None:
    assert commits_beside(str(tmp_path), ()) == {}
    for unit in ("a", "c", "b"):
        write_commit(str(tmp_path), commit_of(unit), {})
    (tmp_path / "units" / "commits" / "else.json").touch()
    beside = commits_beside(str(tmp_path), {commit_of("a").file})
    assert list(beside.items()) == [(commit_of("b").file, commit_of("b")), (commit_of("c").file, commit_of("c"))]


def test_annotations_of_another_hash_than_the_committed_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    path.write_bytes(b"abc")
    # SHA-256 of "abc", as FIPS 180-2 gives it.
    assert read_annotations(str(path), sha256="ba7816bf8f01cfea") == b"abc"
    with pytest.raises(UserError, match=r"u.parquet was changed since it was committed; remove it, and run again"):
        read_annotations(str(path), sha256="0" * 16)


def test_bytes_that_are_written_again_are_never_missing_and_a_longer_old_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with same_bytes_file(str(path)) as file:
        file.write(b"0123456789")
        assert (file.tell(), file.sha256) == (10, hashlib.sha256(b"0123456789").hexdigest())
    with same_bytes_file(str(path)) as file:  # an attempt beside the one that has committed
        assert path.read_bytes() == b"0123456789"
        file.write(b"01234567")
        assert path.read_bytes()[:8] == b"01234567"
    assert path.read_bytes() == b"01234567"
