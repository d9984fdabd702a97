"""The texts of a set's classes, in one file that all processes of a machine map: two million cost a worker nothing."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.schema import UserError, entity_text
from pipeline.storage.disk import CACHE_VARIABLE, cache_folder, one_line, write_whole

_BETWEEN = "\n"  # name and description; texts of entities have no line breaks
_END_BYTES = 8  # of the position where a class's texts end


class ClassTexts(Sequence[tuple[str, str]]):
    """By class id: name, and "name, description". Pickled it is a path and a number.

    The file begins with the position where the texts of each class end, then come the texts in UTF-8. Its name is a
    hash of what it holds, so another process may write the same one, and one that was cut off is written again.

    Args:
        names_and_descriptions: of the classes, by class id.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, names_and_descriptions: Iterable[tuple[str, str]]):
        texts = [
            (entity_text(name, "") + _BETWEEN + entity_text(name, description)).encode("utf-8", "replace")
            for name, description in names_and_descriptions
        ]
        ends = np.cumsum([len(text) for text in texts], dtype="<i8")
        content = ends.tobytes() + b"".join(texts)
        self._length = len(texts)
        try:
            self._path = os.path.join(cache_folder(), f"texts-{hashlib.sha256(content).hexdigest()[:32]}")
            if not (os.path.exists(self._path) and os.path.getsize(self._path) == len(content)):
                write_whole(self._path, content)
        except OSError as error:
            raise UserError(
                f"the texts of {self._length} classes cannot be kept on this machine ({one_line(error)}); name a "
                f"folder with room for {len(content)} bytes in the environment variable {CACHE_VARIABLE}"
            ) from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, class_id: int) -> tuple[str, str]:  # type: ignore[override]  # no slices
        """Returns the texts of a class.

        Raises:
            IndexError: there is no such class.
            UserError: the file is gone.
        """
        if not 0 <= class_id < self._length:
            raise IndexError(f"class {class_id} is none of the {self._length}")
        content = _mapped(self._path)
        start, end = (self._end(content, which) for which in (class_id - 1, class_id))
        name, _, text = content[start:end].decode().partition(_BETWEEN)
        return name, text

    def _end(self, content: mmap.mmap, class_id: int) -> int:
        place = _END_BYTES * class_id
        of_texts = int.from_bytes(content[place : place + _END_BYTES], "little") if class_id >= 0 else 0
        return _END_BYTES * self._length + of_texts


@functools.lru_cache(maxsize=4)
def _mapped(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # no record is at fault
        raise UserError(
            f"the texts of the classes cannot be read ({one_line(error)}): {path}; start the command again, which "
            "writes them"
        ) from None
