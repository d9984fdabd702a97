"""Sorted entries -> the files of the entities, part by part, in any process."""

from __future__ import annotations

import contextlib
import marshal
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.kb.build.entries import id_of
from pipeline.kb.build.flat_writer import FlatWriter, read_array
from pipeline.kb.build.marshal_files import read_values, write_value
from pipeline.kb.build.runs import Keys, Run, Runs, merge, write_run
from pipeline.kb.entity_ids import ORDINAL

OTHER_REFERENCES = "other_references"
_FILES = ("entities", "numbers", "other_ids", "words", "references")  # all but "numbers" have offsets
_BLOCK = 1 << 16  # offsets


class EntityPart(NamedTuple):
    """The entities of some ids; ordinals count from the first of them."""

    folder: str
    num_entities: int
    postings: list[Run]


def write_entries(path: str, packed: Sequence[bytes]) -> Run:
    """Writes the entries that `EntryEncoder` packed, sorted."""
    return write_run(path, sorted(entry for some in packed for entry in marshal.loads(some)))


def write_entity_part(folder: str, runs: Sequence[Run], keys: Keys, postings_held: int) -> EntityPart:
    """Writes the files of the entities with these keys, and runs of their names.

    Args:
        folder: for the files.
        runs: of entries.
        keys: of the entries to take.
        postings_held: names in memory.
    """
    os.mkdir(folder)
    postings = Runs(folder, "postings", num_items=postings_held)
    last, count = b"", 0
    with contextlib.ExitStack() as stack:
        entities, numbers, other_ids, words, references = (
            stack.enter_context(FlatWriter(folder, name, has_offsets=name != "numbers")) for name in _FILES
        )
        other_references = stack.enter_context(open(os.path.join(folder, OTHER_REFERENCES), "wb"))
        for key, _, record, own_words, own_references, types, links, names in merge(runs, keys):
            if key == last:  # of two with the same id the first counts
                continue
            last = key
            entity_id = id_of(key)
            if isinstance(entity_id, int):
                numbers.append(ORDINAL.pack(entity_id))
            else:
                other_ids.append(entity_id)
            entities.append(record)
            words.append(own_words)
            references.append(own_references)
            if types or links:
                write_value((count, types, links), other_references)
            postings.extend([(name, count, weight, case, 0) for name, weight, case in names])
            count += 1
    return EntityPart(folder, count, postings.finish())


def join_parts(folder: str, parts: Sequence[EntityPart]) -> list[Run]:
    """Writes the files of all entities to `folder`; returns the runs of their names, with the ordinals of the base."""
    firsts = np.cumsum([0, *(part.num_entities for part in parts)]).tolist()
    for name in _FILES:
        with open(os.path.join(folder, name), "wb") as file:
            for part in parts:
                _move(os.path.join(part.folder, name), file)
        if name != "numbers":
            _join_offsets(folder, f"{name}.offsets", parts)
    with open(os.path.join(folder, OTHER_REFERENCES), "wb") as file:
        for first, part in zip(firsts, parts, strict=False):
            path = os.path.join(part.folder, OTHER_REFERENCES)
            for ordinal, types, links in read_values(path):
                write_value((first + ordinal, types, links), file)
            os.remove(path)
    return [run._replace(shift=first) for first, part in zip(firsts, parts, strict=False) for run in part.postings]


def _join_offsets(folder: str, name: str, parts: Sequence[EntityPart]) -> None:
    end = 0
    with open(os.path.join(folder, name), "wb") as file:
        np.zeros(1, np.uint64).tofile(file)
        for part in parts:
            offsets = read_array(part.folder, name)
            for start in range(1, len(offsets), _BLOCK):
                (offsets[start : start + _BLOCK] + np.uint64(end)).tofile(file)
            end += int(offsets[-1])
            os.remove(os.path.join(part.folder, name))


def _move(path: str, file: Any) -> None:
    """Appends the content of the file at `path` to `file`, and removes it."""
    with open(path, "rb") as part:
        shutil.copyfileobj(part, file, 1 << 20)
    os.remove(path)
