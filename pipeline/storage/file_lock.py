"""A lock on a local folder: of two runs that write to one folder, the second is refused. Standard library only.

It is a lock of the operating system on the file `.lock` there. It ends with the process, however that ends, so it is
never stale; and the first thing that a run does when it gets it is to write its name there, for the others to read.
It holds between machines as far as the file system shares such locks (NFS 4 does; Lustre does if mounted with `flock`).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from pipeline.schema import UserError
from pipeline.storage.disk import reporting_disk_errors

_LOCK_NAME = ".lock"


class NoLocksError(UserError):
    """The file system has no locks."""


@contextlib.contextmanager
def folder_lock(directory: str, *, command: str, option: str) -> Iterator[None]:
    """Holds the lock of the local folder `directory`, which exists. A file system without locks is named, and used.

    Args:
        directory: the folder.
        command: the name of the command, for the message that another run gets.
        option: the option that names the folder.

    Raises:
        UserError: another run has the lock, or the folder cannot be written to.
    """
    lock = FileLock(directory, command=command, option=option, remedy="wait until it has ended, or stop it")
    try:
        message = lock.acquire()
    except NoLocksError as error:
        print(f"warning: {error}; make sure that there is none", flush=True)
        yield
        return
    if message is not None:
        raise UserError(message)
    try:
        yield
    finally:
        lock.release()


class FileLock:
    """The lock of one folder.

    Args:
        directory: the folder.
        command: the name of the command.
        option: the option that names the folder.
        remedy: what the user of a second run is told to do.
    """

    def __init__(self, directory: str, *, command: str, option: str, remedy: str):
        self._directory, self._option, self._remedy = directory, option, remedy
        self._command = command
        self._path = os.path.join(directory, _LOCK_NAME)
        self._descriptor: int | None = None

    def acquire(self) -> str | None:
        """Returns None once the lock is held, else who holds it.

        Raises:
            NoLocksError: the file system has no locks.
            UserError: the lock cannot be written.
        """
        with reporting_disk_errors(self._directory, option=self._option):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _read_owner(os.read(descriptor, 1 << 16))
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise NoLocksError(
                        f"{self._option} {self._directory} lies on a file system without locks ({error.strerror}), so "
                        "it cannot be seen whether another run writes to it"
                    ) from error
                return f"{self._option} {self._directory} is in use by {told(owner)}; {self._remedy}"
            if not _is_same_file(descriptor, self._path):  # the run before removed it between our two steps
                os.close(descriptor)
                return self.acquire()
            self._descriptor = descriptor
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(this_process(self._command)).encode(), 0)
        return None

    def release(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(OSError):  # of a disk that was made read-only; the lock ends with the descriptor
            os.remove(self._path)
        os.close(self._descriptor)


def this_process(command: str) -> dict[str, Any]:
    """Returns what a lock says of its owner, if that is this process."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"command": command, "host": socket.gethostname(), "pid": os.getpid(), "started": started}


def told(owner: dict[str, Any] | None) -> str:
    """Returns who the owner is, in words."""
    if owner is None:
        return "another run"
    started = datetime.datetime.fromisoformat(owner["started"])
    minutes = (datetime.datetime.now(datetime.UTC) - started).total_seconds() / 60
    return (
        f"{owner['command']} (process {owner['pid']} on {owner['host']}, since {started:%Y-%m-%d %H:%M} UTC, "
        f"{minutes:.0f} minutes)"
    )


def _read_owner(content: bytes) -> dict[str, Any] | None:
    try:
        owner: dict[str, Any] = json.loads(content)
    except ValueError:  # it has the lock, and has not yet written its name
        return None
    return owner


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
