"""What a set takes from an earlier one, and what is no earlier set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.schema import UserError
from pipeline.shard_format import FORMAT_VERSION
from pipeline.storage import earlier_set
from pipeline.storage.earlier_set import forget_snapshot, read_earlier_set

MANIFEST: dict[str, Any] = {
    "format_version": FORMAT_VERSION,
    "kind": "i2e",
    "min_similarity": 0.25,
    "shards": [{"unit": "b"}, {"unit": "a"}],
}


def write_set(folder: Path, **changed: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | changed))
    (folder / "vocabulary.jsonl").write_bytes(b"words\n")


def test_a_set_elsewhere_is_read_where_it_lies(tmp_path: Path) -> None:
    write_set(tmp_path / "old")
    found = read_earlier_set(f"{tmp_path}/old", output=f"{tmp_path}/new", snapshot=f"{tmp_path}/copies")
    assert (found.folder, found.manifest, found.is_replaced) == (f"{tmp_path}/old", MANIFEST, False)
    assert found.vocabulary_path == f"{tmp_path}/old/vocabulary.jsonl"
    assert (found.min_similarity, found.units) == (0.25, ("b", "a"))
    assert found.fingerprint == hashlib.sha256(b'[0.25, ["b", "a"]]words\n').hexdigest()
    assert not (tmp_path / "copies").exists()


def test_a_set_that_is_replaced_is_read_from_copies_also_after_a_kill(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    paths = {"output": f"{tmp_path}/set", "snapshot": f"{tmp_path}/copies"}
    found = read_earlier_set(f"{tmp_path}/set/", **paths)
    assert (found.folder, found.manifest, found.is_replaced) == (f"{tmp_path}/set/", MANIFEST, True)
    assert found.vocabulary_path == f"{tmp_path}/copies/vocabulary.jsonl"
    # The new set is being made: its manifest is gone, and its vocabulary is another.
    (tmp_path / "set" / "manifest.json").unlink()
    (tmp_path / "set" / "vocabulary.jsonl").write_bytes(b"other\n")
    assert dataclasses.replace(read_earlier_set(f"{tmp_path}/set", **paths), folder=found.folder) == found
    # It is finished, and is the earlier set of the next one.
    write_set(tmp_path / "set", min_similarity=0.5)
    assert read_earlier_set(f"{tmp_path}/set", **paths).min_similarity == 0.5


def test_of_the_copies_the_manifest_is_the_last_to_come_and_the_first_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set")
    calls, copy, delete = [], earlier_set.copy_file, earlier_set.delete_files

    def copied(source: str, target: str) -> None:
        calls.append(("copy", source.removeprefix(f"{tmp_path}/"), target.removeprefix(f"{tmp_path}/")))
        copy(source, target)

    def deleted(paths: list[str]) -> None:
        calls.append(("delete", *(path.removeprefix(f"{tmp_path}/") for path in paths)))
        delete(paths)

    monkeypatch.setattr(earlier_set, "copy_file", copied)
    monkeypatch.setattr(earlier_set, "delete_files", deleted)
    read_earlier_set(f"{tmp_path}/set", output=f"{tmp_path}/set", snapshot=f"{tmp_path}/copies")
    forget_snapshot(f"{tmp_path}/copies")
    assert calls == [
        ("copy", "set/vocabulary.jsonl", "copies/vocabulary.jsonl"),
        ("copy", "set/manifest.json", "copies/manifest.json"),
        ("delete", "copies/manifest.json"),
        ("delete", "copies/vocabulary.jsonl"),
    ]
    assert list((tmp_path / "copies").iterdir()) == []
    forget_snapshot(f"{tmp_path}/copies")  # there is none


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_version": 99}, "has format version 99, this code writes .*; choose another --output"),
        ({"kind": "pairs"}, "is not that of an .* set of this version; build that set again, or leave --from-set out"),
        ({"kind": None}, "is not that of an Image-to-Entities set of this version; build that set again, or leave"),
        ({"shards": [{"unit": "a"}, {}]}, "is not that of an Image-to-Entities set of this version; build that set"),
    ],
)
def test_another_version_or_kind_of_set_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_set(tmp_path / "old", **changed)
    with pytest.raises(UserError, match=f"^{tmp_path}/old/manifest.json {message}"):
        read_earlier_set(f"{tmp_path}/old", output="new", snapshot="copies")


def test_a_folder_without_a_finished_set_is_refused(tmp_path: Path) -> None:
    message = (
        "holds no finished set (manifest.json is missing); give the folder of a set that python -m pipeline.build_i2e "
        "finished, or leave the option out"
    )
    for output in ("new", f"{tmp_path}/old"):
        with pytest.raises(UserError) as refused:
            read_earlier_set(f"{tmp_path}/old", output=output, snapshot=f"{tmp_path}/copies")
        assert str(refused.value) == f"--from-set {tmp_path}/old {message}"
