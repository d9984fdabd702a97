"""Copies of what lies in a store, which here is a folder behind Beam's interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

from pipeline.kb.store import KnowledgeBase, read_manifest
from pipeline.schema import UserError
from pipeline.storage import local_copy as module
from pipeline.storage.local_copy import MissingFileError, local_copy
from tests.fakes import write_knowledge_base


class FolderStore(FileSystem):
    """`folder://name/…` is the path below `root`; `opened` lists what was read."""

    root = Path()
    opened: list[str] = []

    @classmethod
    def scheme(cls):
        return "folder"

    def path(self, url):
        return self.root / url.removeprefix("folder://")

    def has_dirs(self):
        return False

    def _list(self, prefix):
        for path in sorted(self.root.rglob("*")):
            url = f"folder://{path.relative_to(self.root)}"
            if path.is_file() and url.startswith(prefix):
                yield FileMetadata(url, path.stat().st_size, path.stat().st_mtime)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        self.opened.append(path)
        return self.path(path).open("rb")

    def exists(self, path):
        return self.path(path).is_file()

    def join(self, base, *paths):
        return "/".join((base, *paths))

    def split(self, path):
        return path.rsplit("/", 1)

    def metadata(self, path):
        return FileMetadata(path, self.path(path).stat().st_size, self.path(path).stat().st_mtime)

    def refuse(self, *args, **kwargs):
        raise BeamIOError("the store is read-only")

    mkdirs = create = copy = rename = delete = size = last_updated = checksum = refuse


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The root of the store; the cache is `tmp_path / "cache"`, and this process has copied nothing."""
    monkeypatch.setattr(FolderStore, "root", tmp_path / "store")
    monkeypatch.setattr(FolderStore, "opened", [])
    monkeypatch.setattr(module, "_copies", {})
    monkeypatch.setattr(module, "_locks", [])
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "store" / "b" / "kb").mkdir(parents=True)
    yield tmp_path / "store" / "b"
    for lock in module._locks:
        os.close(lock)


def forget():
    """What a new process knows: nothing."""
    for lock in module._locks:
        os.close(lock)
    module._locks.clear()
    module._copies.clear()


def test_a_path_on_this_machine_is_its_own_copy(store):
    assert local_copy("some/folder") == "some/folder" and not (store.parents[1] / "cache").exists()


def test_a_folder_is_copied_once_and_every_process_gets_that_copy(store):
    (store / "kb" / "one").write_bytes(b"1")
    (store / "kb" / "two").write_bytes(b"22")
    folder = local_copy("folder://b/kb")
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == {"one": b"1", "two": b"22"}
    assert sorted(FolderStore.opened) == ["folder://b/kb/one", "folder://b/kb/two"]
    assert local_copy("folder://b/kb") == folder
    forget()
    assert local_copy("folder://b/kb/") == folder
    assert len(FolderStore.opened) == 2


def test_a_file_is_copied_under_its_name_even_if_the_folder_has_that_name_too(store):
    (store / "kb" / "kb").write_bytes(b"inner")
    (store / "tagger.pt").write_bytes(b"model")
    assert Path(local_copy("folder://b/tagger.pt")).name == "tagger.pt"
    assert Path(local_copy("folder://b/tagger.pt")).read_bytes() == b"model"
    assert (Path(local_copy("folder://b/kb")) / "kb").read_bytes() == b"inner"


def test_a_new_content_gets_a_new_copy_and_the_old_one_goes_once_nobody_uses_it(store):
    (store / "kb" / "one").write_bytes(b"1")
    first = local_copy("folder://b/kb")
    module._copies.clear()
    (store / "kb" / "one").write_bytes(b"new")
    second = local_copy("folder://b/kb")
    assert (Path(first) / "one").read_bytes() == b"1"  # this process still holds it
    assert (Path(second) / "one").read_bytes() == b"new"
    forget()
    (store / "kb" / "one").write_bytes(b"newest")
    third = local_copy("folder://b/kb")
    assert not Path(first).exists() and not Path(second).exists()
    assert (Path(third) / "one").read_bytes() == b"newest"


def test_a_copy_that_was_cut_short_by_a_kill_is_made_again(store):
    (store / "kb" / "one").write_bytes(b"1")
    folder = Path(local_copy("folder://b/kb"))
    forget()
    (folder.parent / "address.json").unlink()
    (folder / "one").write_bytes(b"")
    assert (Path(local_copy("folder://b/kb")) / "one").read_bytes() == b"1"


def test_a_second_process_waits_for_the_copy_of_the_first(store, tmp_path):
    (store / "kb" / "one").write_bytes(b"1")
    folder = Path(local_copy("folder://b/kb"))
    (lock,) = (tmp_path / "cache").glob("*.lock")
    # The first process is not ready: it has the lock alone.
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl; f = open({str(lock)!r}); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    forget()
    with holder:
        assert holder.stdout.readline() == b"1\n"
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"import fcntl; fcntl.flock(open({str(lock)!r}), fcntl.LOCK_SH | fcntl.LOCK_NB)"],
            stderr=subprocess.PIPE,
        )
        with waiting:
            assert b"BlockingIOError" in waiting.stderr.read()
        holder.communicate(b"\n")
    assert local_copy("folder://b/kb") == str(folder) + "/"


def test_a_second_process_does_not_wait_until_the_first_ends(store):
    (store / "kb" / "data").write_bytes(b"names")
    first = local_copy("folder://b/kb")  # this process goes on using it
    # Locks belong to opened files, so a second one of the same process is as that of another.
    found = []
    second = threading.Thread(target=lambda: found.append(module._copy_once("folder://b/kb")), daemon=True)
    second.start()
    second.join(timeout=10)
    assert found == [first]


def test_nothing_at_the_address_is_an_error_that_names_it(store):
    with pytest.raises(MissingFileError, match="folder://b/none: there is no such file, and no folder with files"):
        local_copy("folder://b/none")
    with pytest.raises(UserError, match=re.escape("folder://b/kb: no finished knowledge base there (manifest.json is")):
        read_manifest("folder://b/kb")


def test_a_disk_without_room_is_an_error_that_names_the_variable(store, monkeypatch):
    (store / "kb" / "one").write_bytes(bytes(3))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=2))
    with pytest.raises(UserError, match=r"folder://b/kb has 0.00 GB, and .*cache has room for 0.00 GB; .* MOFI_CACHE"):
        local_copy("folder://b/kb")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    assert os.listdir(local_copy("folder://b/kb")) == ["one"]


def test_files_that_change_while_they_are_copied_are_an_error(store, monkeypatch):
    (store / "kb" / "one").write_bytes(b"1")
    fetch = module._fetch
    monkeypatch.setattr(module, "_fetch", lambda *args: (fetch(*args), (store / "kb" / "two").write_bytes(b"2")))
    with pytest.raises(UserError, match="folder://b/kb changed while it was copied; wait until it is written"):
        local_copy("folder://b/kb")


def test_a_knowledge_base_opens_from_a_store_and_only_its_manifest_is_copied_for_its_hash(store, tmp_path):
    write_knowledge_base(tmp_path / "kb")
    for path in (tmp_path / "kb").iterdir():
        (store / "kb" / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "kb" / "manifest.json").read_text())
    assert read_manifest("folder://b/kb") == manifest
    assert FolderStore.opened == ["folder://b/kb/manifest.json"]
    base = KnowledgeBase.open("folder://b/kb")
    assert base.entity("E3").label == "Entity 3" and base.hash == manifest["hash"]
    base.close()
