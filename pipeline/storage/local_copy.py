"""Models and knowledge bases in a store (`gs://` and its like): each machine copies one once, all its processes map it.

    <cache>/<hash>/     the copy; the hash is of the address, and of the sizes and times of the files
    <cache>/<hash>.lock locked while the copy is made, and shared by the processes that use it

The cache is the folder that the environment variable MOFI_CACHE names, by default one in the folder for temporary
files.
A copy that no process uses is removed when the same address is copied again with another content.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import threading
from typing import Any

from pipeline.schema import UserError
from pipeline.storage.disk import CACHE_VARIABLE, cache_folder

_ADDRESS = "address.json"  # beside the files of a copy, in its own folder
_FILES = "files"
_CHUNK_BYTES = 1 << 24
_THREADS = 8


class MissingFileError(UserError):
    """There is nothing at an address."""


_copies: dict[str, str] = {}  # of this process, by address
_locks: list[int] = []  # held until the process ends
_mutex = threading.Lock()


def local_copy(path: str) -> str:
    """Returns where on this machine's disk the folder or file at `path` lies; a local path is returned as it is.

    Raises:
        MissingFileError: there is nothing at `path`.
        UserError: the disk has no room, or the files change while they are copied.
    """
    if "://" not in path:
        return path
    with _mutex:
        if path not in _copies:
            _copies[path] = _copy_once(path.rstrip("/"))
        return _copies[path]


def _copy_once(address: str) -> str:
    files = _list(address)
    if not files:
        raise MissingFileError(f"{address}: there is no such file, and no folder with files; check the address")
    key = hashlib.sha256(json.dumps([address, files]).encode()).hexdigest()[:32]
    folder = os.path.join(cache_folder(), key)
    lock = os.open(folder + ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Processes that use the copy share the lock until they end, so only who copies may ask for it alone.
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not os.path.exists(os.path.join(folder, _ADDRESS)):
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another process that copies
            if not os.path.exists(os.path.join(folder, _ADDRESS)):
                _copy(address, files, folder)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)
        raise
    _locks.append(lock)
    is_file = files[0][0] == ""
    return os.path.join(folder, _FILES, posixpath.basename(address) if is_file else "")


def _copy(address: str, files: list[tuple[str, int, float]], folder: str) -> None:
    _remove_unused(os.path.dirname(folder), address)
    _check_room(os.path.dirname(folder), address, sum(size for _, size, _ in files))
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    os.makedirs(os.path.join(folder, _FILES))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda file: _fetch(address, file, folder), files):
            pass
    if _list(address) != files:
        raise UserError(f"{address} changed while it was copied; wait until it is written, and run again")
    # Written last: a copy without it does not count.
    with open(os.path.join(folder, _ADDRESS), "w", encoding="utf-8") as file:
        json.dump({"address": address}, file)


def _list(address: str) -> list[tuple[str, int, float]]:
    """Returns name, size in bytes and time of each file in the folder at `address`; of a file the name is ""."""
    from apache_beam.io.filesystems import FileSystems

    found = FileSystems.match([address, address + "/*"])
    entries: list[Any] = found[0].metadata_list or found[1].metadata_list
    return sorted(
        (one.path[len(address) + 1 :], one.size_in_bytes, one.last_updated_in_seconds)
        for one in entries
        if not one.path.endswith("/")  # stores have objects that stand for folders
    )


def _fetch(address: str, file: tuple[str, int, float], folder: str) -> None:
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    name, size_bytes, _ = file
    source = f"{address}/{name}" if name else address
    target = os.path.join(folder, _FILES, posixpath.basename(source))
    with (
        FileSystems.open(source, compression_type=CompressionTypes.UNCOMPRESSED) as remote,
        open(target, "wb") as local,
    ):
        shutil.copyfileobj(remote, local, _CHUNK_BYTES)
    if os.path.getsize(target) != size_bytes:
        raise UserError(f"{source} has {size_bytes} bytes, and {os.path.getsize(target)} were read; run again")


def _check_room(cache: str, address: str, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(cache).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{address} has {needed_bytes / 1e9:.2f} GB, and {cache} has room for {free_bytes / 1e9:.2f} GB; free some "
            f"space, or name a folder on another disk in the environment variable {CACHE_VARIABLE}"
        )


def _remove_unused(cache: str, address: str) -> None:
    """Removes copies of earlier contents of `address` that no process has locked."""
    for name in os.listdir(cache):
        folder = os.path.join(cache, name)
        try:
            with open(os.path.join(folder, _ADDRESS), encoding="utf-8") as file:
                other = json.load(file)["address"]
            lock = os.open(folder + ".lock", os.O_RDWR)
        except (OSError, ValueError):
            continue
        try:
            if other == address:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
