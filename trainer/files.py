"""The files of a run, on a disk or on `gs://`, by the paths of etils, with which Orbax and JAX write, too.

On `gs://` TensorFlow does the work below them. An object there appears when it is closed, whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from pipeline.schema import UserError
from pipeline.storage.disk import CACHE_VARIABLE, cache_folder, cache_path, one_line, reporting_disk_errors, write_whole

# How messages of TensorStore start, which raises a ValueError for every error of a store, where the store is at fault.
_OF_TENSORSTORE = re.compile(
    "(ABORTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
)
_SAYS_WHERE = re.compile("gs://|http_response_code|googleapis")
_OF_CLIENTS = ("google.api_core.", "google.auth.", "google.cloud.", "requests.", "apache_beam.")


def in_store(path: str) -> bool:
    """Returns whether `path` is an address in a store, instead of a path on a disk."""
    return "://" in path


def normalised(path: str) -> str:
    """Returns the address `path` in one spelling, without doubled slashes; paths on a disk are returned as they are."""
    return os.fspath(epath.Path(path)) if in_store(path) else path


def as_path(path: str, *parts: str) -> Any:
    """Returns the path object of `path`: of etils in a store, and of pathlib on a disk, also below `/s3` or `/hf`."""
    return epath.Path(path, *parts) if in_store(path) else pathlib.Path(path, *parts)


def absolute(path: str) -> str:
    """Returns `path` from the root on; addresses in a store are returned as they are."""
    return path if in_store(path) else os.path.abspath(path)


def write_file(path: str, content: bytes) -> None:
    """Writes `content` at `path`, whole or not at all."""
    if in_store(path):
        epath.Path(path).write_bytes(content)
    else:
        write_whole(path, content)


def append_line(path: str, line: str) -> None:
    """Appends `line`, which gets its end, to the file at `path`. In a store the file is written anew."""
    with as_path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(path: str) -> list[str]:
    """Returns the lines of the file at `path`, without their ends; none if there is no file.

    A last line without an end was cut off by a kill, and does not count.
    """
    file = as_path(path)
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


@contextlib.contextmanager
def read_locally(path: str) -> Iterator[str]:
    """Gives the path on a disk of the files of the folder at `path`; of one in a store they are copied meanwhile."""
    if not in_store(path):
        yield path
        return
    with _local_folder() as local:
        for file in epath.Path(path).iterdir():
            if file.is_file():
                file.copy(os.path.join(local, file.name))
        yield local


@contextlib.contextmanager
def written_locally(path: str, names: Sequence[str] = ()) -> Iterator[str]:
    """Gives the path on a disk where the folder at `path` is written; one in a store gets its files at the end.

    Args:
        path: of the folder.
        names: the files that such a folder can have. The last of them, which says that it is whole, is copied last.
    """
    if not in_store(path):
        yield path
        return
    with _local_folder() as local:
        yield local
        found = [os.path.relpath(os.path.join(at, name), local) for at, _, files in os.walk(local) for name in files]
        with reporting_store_errors(path, option="folder"):
            for name in reversed(names):  # of the folder that was there before
                epath.Path(path, name).unlink(missing_ok=True)
            for name in sorted(found, key=lambda name: (name in names[-1:], name)):
                epath.Path(local, name).copy(epath.Path(path, name), overwrite=True)


@contextlib.contextmanager
def _local_folder() -> Iterator[str]:
    folder = cache_path()
    with reporting_disk_errors(folder, option=CACHE_VARIABLE):
        try:
            made = tempfile.TemporaryDirectory(dir=cache_folder())
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{CACHE_VARIABLE} {folder} is no folder, and none can be made there ({error})") from error
        with made as local:
            yield local


def check_store(address: str, *, option: str) -> None:
    """Checks that checkpoints can be written to the folder at `address`, an address in a store.

    Raises:
        UserError: the store is not `gs://`, Google's client libraries are missing, or the bucket cannot be reached.
    """
    if not address.startswith("gs://"):
        raise UserError(f"{option} {address} is in a store that is not gs://; give a folder or an address on gs://")
    if not _is_installed("google.cloud.storage"):
        raise UserError(
            f"{option} {address}: Google's client libraries are missing, with which checkpoints are written to gs://; "
            "add them with make setup-gcp"
        )
    with _local_folder():
        pass  # the encoder is written there first, at the end
    name = address.removeprefix("gs://").split("/")[0]
    with reporting_store_errors(address, option=option):
        from google.cloud import storage  # not at the top: it is not part of what `make setup` makes

        try:
            bucket = storage.Client().get_bucket(name)
        except (OSError, ValueError) as error:
            if type(error) not in (OSError, ValueError):
                raise  # of the network
            raise UserError(
                f"{option} {address} cannot be used ({one_line(error)}); give the name of a bucket after gs://, and "
                "the project in GOOGLE_CLOUD_PROJECT if your credentials have none"
            ) from error
    if bucket.hierarchical_namespace_enabled and not _is_installed("google.cloud.storage_control_v2"):
        raise UserError(
            f"{option} {address}: the bucket has a hierarchical namespace, for which Orbax needs the package "
            "google-cloud-storage-control; install it, or choose another bucket"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def reporting_store_errors(address: str, *, option: str) -> Iterator[None]:
    """Turns an error that the store of `address` caused into a UserError; others pass. On a disk it does nothing.

    Raises:
        UserError: the store cannot be read or written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = store_error(error) if in_store(address) else None
        if cause is None:
            raise
        raise UserError(
            f"{option} {address} cannot be read or written ({one_line(cause)[:300]}); check the address, your rights "
            "and the network"
        ) from error


def store_error(error: BaseException) -> BaseException | None:
    """Returns the error of a store that refuses or does not answer, if it caused `error`; None if nothing says so."""
    from tensorflow import errors  # not at the top: only runs in a store need it, and it takes seconds

    of_stores = (
        errors.AbortedError,
        errors.DeadlineExceededError,
        errors.FailedPreconditionError,
        errors.PermissionDeniedError,
        errors.ResourceExhaustedError,
        errors.UnauthenticatedError,
        errors.UnavailableError,
        errors.UnknownError,
    )
    cause: BaseException | None = error
    while cause is not None:
        if (
            isinstance(cause, of_stores)
            or (isinstance(cause, ValueError) and _OF_TENSORSTORE.match(str(cause)) and _SAYS_WHERE.search(str(cause)))
            or type(cause).__module__.startswith(_OF_CLIENTS)
        ):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
