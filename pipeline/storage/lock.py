"""A lock on an output folder: of two runs that write to one folder, the second is refused, or waits.

On a disk it is a lock of the operating system on the file `.lock`. It ends with the process, however that ends, so it
is never stale; and the first thing that a run does when it gets it is to write its name there, for the others to read.
It holds between machines as far as the file system shares such locks (NFS 4 does; Lustre does if mounted with `flock`).

An object store has neither locks nor renames. There each run writes a claim of its own below `.locks/` and then lists
all claims: if there is another one, it withdraws. Listings of the stores are consistent with what was written before,
so of two runs at most one goes on; two that start at the same moment may both withdraw. A claim is renewed every minute
as long as its run lives. That of a killed run of this machine is removed; that of another machine is stale if it was
not renewed for ten minutes: the message names it, and what to remove.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import posixpath
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors

_LOCK_NAME = ".lock"
_CLAIMS_FOLDER = ".locks"
_POLL_SEC = 5.0
_RENEW_SEC = 60.0
_STALE_SEC = 600.0


@contextlib.contextmanager
def output_lock(directory: str, *, command: str, wait: bool = False) -> Iterator[None]:
    """Holds the lock of the output folder `directory`, which exists.

    Args:
        directory: local or remote.
        command: the name of the command, for the message that another run gets.
        wait: whether to wait for the run that has the lock.

    Raises:
        UserError: another run has the lock, and `wait` is false; or the folder cannot be written to.
    """
    lock: _FileLock | _Claim = _Claim(directory, command) if "://" in directory else _FileLock(directory, command)
    is_told = False
    while (message := lock.acquire()) is not None:
        if not wait:
            raise UserError(message)
        if not is_told:
            print(f"{command}: waits, since {message}", flush=True)
            is_told = True
        time.sleep(_POLL_SEC)
    try:
        yield
    finally:
        lock.release()


class _FileLock:
    def __init__(self, directory: str, command: str):
        self._directory = directory
        self._command = command
        self._path = os.path.join(directory, _LOCK_NAME)
        self._descriptor: int | None = None

    def acquire(self) -> str | None:
        """Returns None once the lock is held, else who holds it.

        Raises:
            UserError: the lock cannot be written.
        """
        with reporting_disk_errors(self._directory):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _read_owner(os.read(descriptor, 1 << 16))
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise UserError(
                        f"--output {self._directory} lies on a file system without locks ({error.strerror}), so it "
                        "cannot be seen whether another run writes to it; choose another --output"
                    ) from error
                return f"--output {self._directory} is in use by {_told(owner)}; wait for it (--wait), or stop it"
            if not _is_same_file(descriptor, self._path):  # the run before removed it between our two steps
                os.close(descriptor)
                return self.acquire()
            self._descriptor = descriptor
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_owner(self._command)).encode(), 0)
        return None

    def release(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(OSError):  # of a disk that was made read-only; the lock ends with the descriptor
            os.remove(self._path)
        os.close(self._descriptor)


class _Claim:
    def __init__(self, directory: str, command: str):
        self._directory = directory
        self._name = f"{uuid.uuid4().hex}.json"
        self._path = posixpath.join(directory, _CLAIMS_FOLDER, self._name)
        self._owner = _owner(command)
        self._is_released = threading.Event()

    def acquire(self) -> str | None:
        """Returns None once the claim is the only one, else what to do about another."""
        self._write()
        entries = self._list()
        own = next(entry for entry in entries if entry.path.endswith(self._name))
        others = [entry for entry in entries if entry is not own and not self._remove_if_dead(entry.path)]
        if not others:
            threading.Thread(target=self._renew, name="renew-lock", daemon=True).start()
            return None
        self._remove(self._path)
        # Both times are the store's, so the clocks of the two machines do not matter.
        other = max(others, key=lambda entry: entry.last_updated_in_seconds)
        silent_sec = own.last_updated_in_seconds - other.last_updated_in_seconds
        owner = _told(self._read(other.path))
        if silent_sec < _STALE_SEC:
            return f"--output {self._directory} is in use by {owner}; wait for it (--wait), or stop it"
        return (
            f"--output {self._directory} is locked by {owner}, of which nothing was heard for {silent_sec / 60:.0f} "
            f"minutes; if it has ended, remove {other.path}, and run again"
        )

    def _remove_if_dead(self, path: str) -> bool:
        """Removes the claim of a run of this machine that was killed; returns whether it was such a one."""
        owner = self._read(path)
        if owner is None or owner["host"] != socket.gethostname() or _is_running(owner["pid"]):
            return False
        print(f"{self._owner['command']}: takes the place of {_told(owner)}, which has ended", flush=True)
        self._remove(path)
        return True

    def release(self) -> None:
        self._is_released.set()
        self._remove(self._path)

    def _renew(self) -> None:
        while not self._is_released.wait(_RENEW_SEC):
            with contextlib.suppress(Exception):  # the store may be away for a while; the next time will do
                self._write()

    def _write(self) -> None:
        from pipeline.storage.beam_files import write_json  # not at the top: Beam, which build_kb does without

        write_json(self._path, self._owner)

    def _read(self, path: str) -> dict[str, Any] | None:
        from pipeline.storage.beam_files import read_json

        return read_json(path)

    def _list(self) -> list[Any]:
        from apache_beam.io.filesystems import FileSystems

        entries: list[Any] = FileSystems.match([posixpath.join(self._directory, _CLAIMS_FOLDER, "*")])[0].metadata_list
        return entries

    def _remove(self, path: str) -> None:
        from pipeline.storage.beam_files import delete_matching

        delete_matching([path])


def _owner(command: str) -> dict[str, Any]:
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"command": command, "host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _read_owner(content: bytes) -> dict[str, Any] | None:
    try:
        owner: dict[str, Any] = json.loads(content)
    except ValueError:  # it has the lock, and has not yet written its name
        return None
    return owner


def _told(owner: dict[str, Any] | None) -> str:
    """Returns who the owner is, in words."""
    if owner is None:
        return "another run"
    started = datetime.datetime.fromisoformat(owner["started"])
    minutes = (datetime.datetime.now(datetime.UTC) - started).total_seconds() / 60
    return (
        f"{owner['command']} (process {owner['pid']} on {owner['host']}, since {started:%Y-%m-%d %H:%M} UTC, "
        f"{minutes:.0f} minutes)"
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
