"""Small files on any file system."""

from pathlib import Path

from pipeline.storage.beam_files import delete_files, delete_matching


def test_a_path_with_the_characters_of_a_pattern_is_no_pattern(tmp_path: Path) -> None:
    for name in ("pairs[1].json", "pairs1.json", "a*.json", "ab.json"):
        (tmp_path / name).touch()
    delete_files([str(tmp_path / "pairs[1].json"), str(tmp_path / "a*.json")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab.json", "pairs1.json"]


def test_a_file_that_another_attempt_deleted_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    delete_files([str(tmp_path / "a"), str(tmp_path / "b")])
    assert list(tmp_path.iterdir()) == []


def test_what_a_pattern_finds_is_deleted_whatever_its_name(tmp_path: Path) -> None:
    for name in ("pairs[1].json", "pairs1.json", "kept.txt"):
        (tmp_path / name).touch()
    delete_matching([str(tmp_path / "*.json")])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
