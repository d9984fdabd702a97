"""Assembly into an output that is full, read-only or closed from some moment on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.filesystems import FileSystems

from pipeline.schema import UserError
from tests.pipeline.mined_set import mine

_OF_ANNOTATING = ("annotations", "units")


@contextlib.contextmanager
def watched_files(set_folder: Path, broken: str = "", error: Exception | None = None) -> Iterator[list[str]]:
    """Gives the names of the files that are created in the set, in order; creating `broken` raises `error`."""
    create, names = FileSystems.create, []

    def watched(path: str, *args: Any, **options: Any) -> Any:
        name = os.path.relpath(path, set_folder)
        names.append(name)
        if name == broken and error is not None:
            raise error
        return create(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSystems, "create", watched)
        yield names


def digests(set_folder: Path) -> dict[str, str]:
    """Returns name -> hash of the files of the set, but for those that state paths."""
    paths = {str(path.relative_to(set_folder)): path for path in set_folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if name != "manifest.json" and not name.startswith("units/")
    }


def delete_what_was_assembled(set_folder: Path) -> None:
    for path in set_folder.iterdir():
        if path.is_dir() and path.name not in _OF_ANNOTATING:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs and the set of them."""
    folder = tmp_path_factory.mktemp("built")
    mine(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path, built: Path) -> Path:
    """The same, with the annotations alone."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    delete_what_was_assembled(tmp_path / "i2e")
    return tmp_path


def test_an_output_that_fails_at_any_file_stops_with_one_line_and_the_next_run_ends_with_the_same_bytes(
    world: Path, built: Path
) -> None:
    set_folder = world / "i2e"
    with watched_files(set_folder) as names:
        mine(world)
    assert digests(set_folder) == digests(built / "i2e")
    # One file of each kind; those of the second unit, so that the first is finished.
    kinds = {re.sub(r"\d+", "", name): name for name in names if not name.startswith((*_OF_ANNOTATING, "."))}
    expected = ("assembly/labels/", "assembly/records/", "ledger/", "provenance/", "vocabulary", "manifest", "funnel")
    assert all(any(name.startswith(kind) for name in kinds.values()) for kind in expected)
    assert any(name.endswith(".commit.json") for name in kinds.values())
    delete_what_was_assembled(set_folder)
    errors = itertools.cycle([(errno.ENOSPC, "full; free some space"), (errno.EROFS, "read-only; choose another")])
    for name, (number, message) in zip(kinds.values(), errors, strict=False):
        error = OSError(number, os.strerror(number), str(set_folder / name))
        with (
            watched_files(set_folder, name, error) as tried,
            pytest.raises(UserError, match=f"--output .*i2e is {message}"),
        ):
            mine(world)
        assert tried[-1] == name and not (set_folder / "manifest.json").exists()
    mine(world)
    assert digests(set_folder) == digests(built / "i2e")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no file that is always full")
@pytest.mark.parametrize("name", ["i2e-train.tfrecord-00000", "i2e-train.tfrecord-00000.index"])
def test_a_full_disk_stops_what_tensorflow_writes_with_one_line(world: Path, built: Path, name: str) -> None:
    (world / "i2e" / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match="--output .*i2e is full; free some space"):
        mine(world)
    assert not (world / "i2e" / "manifest.json").exists()
    (world / "i2e" / name).unlink()
    assert digests(mine(world)) == digests(built / "i2e")
