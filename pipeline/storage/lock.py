"""A lock on an output folder: of two runs that write to one folder, the second is refused, or waits.

On a disk it is that of `pipeline.storage.file_lock`.

An object store has neither locks nor renames. There each run writes a claim of its own below `.locks/` and then lists
all claims: if there is another one, it withdraws. Listings of the stores are consistent with what was written before,
so of two runs at most one goes on; two that start at the same moment may both withdraw. A claim is renewed every minute
as long as its run lives. That of a killed run of this machine is removed; that of another machine is stale if it was
not renewed for ten minutes: the message names it, and what to remove.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.schema import UserError
from pipeline.storage.file_lock import FileLock, NoLocksError, this_process, told

_REMEDY = "wait for it (--wait), or stop it"
_CLAIMS_FOLDER = ".locks"
_POLL_SEC = 5.0
_RENEW_SEC = 60.0
_STALE_SEC = 600.0
_LAST_WRITE_SEC = 60.0


@contextlib.contextmanager
def output_lock(
    directory: str, *, command: str, wait: bool = False, option: str = "--output", remedy: str = _REMEDY
) -> Iterator[None]:
    """Holds the lock of the output folder `directory`, which exists.

    Args:
        directory: local or remote.
        command: the name of the command, for the message that another run gets.
        wait: whether to wait for the run that has the lock.
        option: the option that names the folder.
        remedy: what the user of a second run is told to do.

    Raises:
        UserError: another run has the lock, and `wait` is false; or the folder cannot be written to.
    """
    lock: FileLock | _Claim
    if "://" in directory:
        lock = _Claim(directory, command, option, remedy)
    else:
        lock = FileLock(directory, command=command, option=option, remedy=remedy)
    is_told = False
    while (message := _acquired(lock, option)) is not None:
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


def _acquired(lock: FileLock | _Claim, option: str) -> str | None:
    try:
        return lock.acquire()
    except NoLocksError as error:
        raise UserError(f"{error}; choose another {option}") from error


class _Claim:
    def __init__(self, directory: str, command: str, option: str = "--output", remedy: str = _REMEDY):
        self._directory, self._option, self._remedy = directory, option, remedy
        self._name = f"{uuid.uuid4().hex}.json"
        self._path = posixpath.join(directory, _CLAIMS_FOLDER, self._name)
        self._owner = this_process(command)
        self._is_released = threading.Event()
        self._renewal: threading.Thread | None = None

    def acquire(self) -> str | None:
        """Returns None once the claim is the only one, else what to do about another."""
        self._write()
        entries = self._list()
        own = next((entry for entry in entries if entry.path.endswith(self._name)), None)
        if own is None:
            raise UserError(f"{self._option} {self._directory} does not list {self._path}, which was just written")
        others = [entry for entry in entries if entry is not own and not self._remove_if_dead(entry.path)]
        if not others:
            self._renewal = threading.Thread(target=self._renew, name="renew-lock", daemon=True)
            self._renewal.start()
            return None
        self._remove(self._path)
        # Both times are the store's, so the clocks of the two machines do not matter.
        other = max(others, key=lambda entry: entry.last_updated_in_seconds)
        silent_sec = own.last_updated_in_seconds - other.last_updated_in_seconds
        owner = told(self._read(other.path))
        if silent_sec < _STALE_SEC:
            return f"{self._option} {self._directory} is in use by {owner}; {self._remedy}"
        return (
            f"{self._option} {self._directory} is locked by {owner}, of which nothing was heard for "
            f"{silent_sec / 60:.0f} minutes; if it has ended, remove {other.path}, and run again"
        )

    def _remove_if_dead(self, path: str) -> bool:
        """Removes the claim of a run of this machine that was killed; returns whether it was such a one."""
        owner = self._read(path)
        if owner is None or owner["host"] != socket.gethostname() or _is_running(owner["pid"]):
            return False
        print(f"{self._owner['command']}: takes the place of {told(owner)}, which has ended", flush=True)
        self._remove(path)
        return True

    def release(self) -> None:
        self._is_released.set()
        if self._renewal is not None:
            self._renewal.join(_LAST_WRITE_SEC)  # else it could write the claim again after it is removed
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

        from pipeline.storage.beam_files import escaped

        folder = escaped(posixpath.join(self._directory, _CLAIMS_FOLDER))
        entries: list[Any] = FileSystems.match([posixpath.join(folder, "*")])[0].metadata_list
        return entries

    def _remove(self, path: str) -> None:
        from pipeline.storage.beam_files import delete_files

        delete_files([path])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True
