"""Files that appear whole or not at all, the folder of copies, and errors of full, closed and read-only disks.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.schema import UserError

CACHE_VARIABLE = "MOFI_CACHE"
_ADVICE = {
    errno.ENOSPC: "is full; free some space",
    errno.EDQUOT: "is over its quota; free some space",
    errno.EROFS: "is read-only; choose another {option}",
    errno.EACCES: "may not be written; choose another {option}, or change its permissions",
    errno.EPERM: "may not be written; choose another {option}, or change its permissions",
    errno.ENOTDIR: "lies below a file; choose another {option}",
    errno.EISDIR: "cannot be written (a folder has the name of a file); remove it, or choose another {option}",
    errno.EEXIST: "is a file; choose another {option}",
    errno.ENOENT: "cannot be created there; choose another {option}",
    errno.EIO: "cannot be written (input/output error), it may be full; free some space or check the disk",
}
_OF_OUTPUTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # reading never raises these
_FULL = ("No space left on device", "ResourceExhaustedError")


def check_writable(directory: str, *, needed_bytes: int = 0) -> None:
    """Checks that the local `directory`, which it creates, takes files and has `needed_bytes` free.

    Files in it count as free space: a run keeps or replaces them, so a resumed run needs only the rest.

    Raises:
        UserError: one of these does not hold.
    """
    probe = os.path.join(directory, ".writable")
    with reporting_disk_errors(directory):
        os.makedirs(directory, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(b"1")
        os.remove(probe)
    disk = os.statvfs(directory)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < needed_bytes and free_bytes < (missing_bytes := needed_bytes - _used_bytes(directory)):
        raise UserError(
            f"--output {directory} has {free_bytes / 1e9:.2f} GB free, the run needs about "
            f"{missing_bytes / 1e9:.2f} GB; free some space, or choose another --output"
        )


def _used_bytes(directory: str) -> int:
    """Returns what the files below `directory` take of the disk; sparse files take less than their size."""
    used_bytes = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process may have removed it
                used_bytes += 512 * os.lstat(os.path.join(folder, name)).st_blocks
    return used_bytes


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that gets the name `path` once it is complete; a kill leaves the old file as it was."""
    path = os.fspath(path)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` at `path`, whole or not at all."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def reporting_disk_errors(directory: str | os.PathLike[str], *, option: str = "--output") -> Iterator[None]:
    """Turns an error that the disk of `directory`, which `option` names, caused into a UserError; others pass.

    Raises:
        UserError: the disk is full, closed or read-only.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reported = disk_error(error, os.fspath(directory), option=option)
        if reported is None:
            raise
        raise reported from error


def disk_error(error: BaseException, directory: str, *, option: str = "--output") -> UserError | None:
    """Returns the user's view of an error that a full or closed disk caused; None for any other error.

    Beam passes errors of workers on as text, and TensorStore and safetensors raise errors of their own with the words
    of the system: where the number is lost, the text is searched.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _ADVICE and _is_below(cause.filename, directory):
            return UserError(f"{option} {directory} {_ADVICE[cause.errno].format(option=option)}")
        for number in _OF_OUTPUTS:
            if f"[Errno {number}]" in str(cause) or os.strerror(number) in str(cause):
                return UserError(f"{option} {directory} {_ADVICE[number].format(option=option)}")
        if any(words in str(cause) for words in _FULL):
            return UserError(f"{option} {directory} {_ADVICE[errno.ENOSPC]}")
        if str(cause).endswith(os.strerror(errno.EIO)):  # LMDB has no numbers
            return UserError(f"{option} {directory} {_ADVICE[errno.EIO]}")
        cause = cause.__cause__ or cause.__context__
    return None


def _is_below(path: object, directory: str) -> bool:
    """Returns whether an error's file is the output's; an error without a file counts as the output's."""
    if not isinstance(path, str | bytes):
        return True
    root = os.path.abspath(directory)
    below = os.path.abspath(os.fsdecode(path))
    # The output itself, what is in it, or a folder above it that cannot be made.
    return below == root or below.startswith(root + os.sep) or root.startswith(below + os.sep)


def one_line(error: BaseException) -> str:
    """Returns the message of `error` on one line."""
    return " ".join(str(error).split())


def cache_folder() -> str:
    """Returns the folder of this machine's copies, which is created if it is missing."""
    folder = cache_path()
    os.makedirs(folder, exist_ok=True)
    return folder


def cache_path() -> str:
    """Returns where the folder of this machine's copies is, or would be."""
    return os.environ.get(CACHE_VARIABLE) or os.path.join(tempfile.gettempdir(), f"mofi-cache-{os.getuid()}")
