"""Sets on `gs://`: records are read one by one, and the offsets of each shard are copied to a disk of this machine.

TensorStore reads the parts of objects, as Orbax does with checkpoints: Beam's files fetch megabytes for each.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterable
from typing import BinaryIO

import tensorstore

from pipeline.schema import UserError
from pipeline.shard_format import INDEX_SUFFIX, MANIFEST_NAME, LocalFiles
from pipeline.storage.disk import CACHE_VARIABLE, cache_folder, one_line, write_whole

_SCHEMES = ("gs://", "file://")  # the second for tests
# Ours: a store that does not answer is asked again for a minute and a half.
_RETRIES = {"gcs_request_retries": {"max_retries": 8, "initial_delay": "500ms", "max_delay": "32s"}}


class StoreFiles:
    """The files of a set in a store.

    Args:
        address: of the set's folder.

    Raises:
        UserError: the store is of an unknown kind, or cannot be read.
    """

    def __init__(self, address: str):
        if not address.startswith(_SCHEMES):
            raise UserError(f"--data {address}: sets are read from folders and from gs://; copy it to one of these")
        self.address = address.rstrip("/")
        # Another set at the same address has other offsets.
        manifest = self._read(f"{self.address}/{MANIFEST_NAME}") or b""
        digest = hashlib.sha256(self.address.encode() + b"\0" + manifest).hexdigest()
        try:
            self.offsets_folder = os.path.join(cache_folder(), f"offsets-{digest}")
            os.makedirs(self.offsets_folder, exist_ok=True)
        except OSError as error:
            raise _not_kept(self.address, error) from None

    def open(self, path: str) -> BinaryIO | None:
        """Returns the file at `path`, open for reading; None if there is none."""
        content = self._read(path)
        return None if content is None else io.BytesIO(content)

    def read(self, path: str, start: int, length: int) -> bytes:
        """Returns the bytes of the file at `path` from `start` on, fewer than `length` where an index ends.

        Raises:
            ValueError: a shard ends before.
            UserError: the store cannot be read.
        """
        if path.endswith(INDEX_SUFFIX):
            return LocalFiles().read(self._copied(path), start, length)
        content = self._read(path, slice(start, start + length))
        if content is None:
            raise UserError(f"{path} is missing; build the set again, or give another --data")
        return content

    def check_present(self, paths: Iterable[str]) -> None:
        """Checks that there are files at all `paths`, by listing the folder once.

        Raises:
            ValueError: one is missing.
            UserError: the store cannot be read.
        """
        try:
            names = {key.decode() for key in _opened(self.address).list().result()}
        except ValueError as error:
            raise _unread(self.address, error) from None
        for path in paths:
            if path[len(self.address) + 1 :] not in names:
                raise ValueError(f"{path} is missing")

    def _read(self, path: str, part: slice = slice(None)) -> bytes | None:
        """Returns a part of the file at `path`; None if there is none."""
        try:
            result = _opened(self.address).read(path[len(self.address) + 1 :], byte_range=part).result()
        except ValueError as error:
            if str(error).startswith("OUT_OF_RANGE"):
                raise ValueError(f"{path} ends before byte {part.stop}; build the set again") from None
            raise _unread(path, error) from None
        return bytes(result.value) if result.state == "value" else None

    def _copied(self, path: str) -> str:
        """Returns the path of this machine's copy of a file, which is made when it is first asked for."""
        copy = os.path.join(self.offsets_folder, path[len(self.address) + 1 :].replace("/", "%"))
        if not os.path.exists(copy):
            content = self._read(path)
            if content is None:
                raise UserError(f"{path} is missing; build the set again, or give another --data")
            try:
                write_whole(copy, content)  # other processes may do the same
            except OSError as error:
                raise _not_kept(path, error) from None
        return copy


@functools.cache
def _opened(address: str) -> tensorstore.KvStore:
    """Returns the store of this process for the folder at `address`."""
    try:
        return tensorstore.KvStore.open(f"{address}/", context=tensorstore.Context(_RETRIES)).result()
    except ValueError as error:
        raise _unread(address, error) from None


def _unread(path: str, error: ValueError) -> UserError:
    return UserError(f"{path} cannot be read ({one_line(error)[:300]}); check the address, your rights and the network")


def _not_kept(path: str, error: OSError) -> UserError:
    return UserError(
        f"the offsets of {path} cannot be kept on this machine ({one_line(error)}); name a folder with room for 8 "
        f"bytes a record in the environment variable {CACHE_VARIABLE}"
    )
