"""A vector per entity: from the base's own graph by truncated SVD, or from a file of trained vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.kb.build.flat_writer import read_array
from pipeline.kb.build.marshal_files import read_values
from pipeline.kb.build.rarities import places_of
from pipeline.kb.build.read_dump import DumpFile
from pipeline.kb.build.runs import Runs
from pipeline.kb.entity_ids import EntityIds
from pipeline.kb.store import VECTORS_NAME
from pipeline.schema import UserError

SVD = "svd"
DIM_MAX = 4096
_URI = "http://www.wikidata.org/entity/"
_VECTORS_HELD = 20_000
_POWER_ITERATIONS = 4
_BLOCK = 65_536  # rows


def write_svd(folder: str, ids: EntityIds, dim: int) -> dict[str, Any]:
    """Writes the vectors of a truncated SVD, and returns what the manifest states of them.

    The matrix has a row per entity and a column per id that entities have as type or link; an entity also has the
    column of its own id, so that it is close to what links to it. Entries are ln(N / n), n being the entries of the
    column; columns of one entry tell nothing. Rows of the result have length 1.

    Memory: about 12 bytes per type and link and 8 `dim` bytes per entity.

    Args:
        folder: of the flat files.
        ids: of the base.
        dim: width; smaller for a base with fewer columns.

    Raises:
        UserError: the entities share no types or links.
    """
    import scipy.sparse
    import sklearn.utils.extmath

    rows, columns = _references(folder, ids)
    counts = np.bincount(columns)
    shared = counts[columns] > 1
    rows, columns = rows[shared], columns[shared]
    _, columns = np.unique(columns, return_inverse=True)
    if not len(rows) or columns.max() < 1:
        raise UserError("--graph svd: the entities share no types or links; build without --graph")
    shape = (len(ids), int(columns.max()) + 1)
    weights = np.log(len(ids) / np.bincount(columns)) + 1e-3  # not 0 for what all have
    matrix = scipy.sparse.csr_matrix((weights[columns].astype(np.float32), (rows, columns)), shape)
    width = min(dim, min(shape) - 1)
    vectors, scales, _ = sklearn.utils.extmath.randomized_svd(
        matrix, n_components=width, n_iter=_POWER_ITERATIONS, random_state=0
    )
    has_row = np.diff(matrix.indptr) > 0
    with open(os.path.join(folder, VECTORS_NAME), "wb") as file:
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK] * scales * has_row[start : start + _BLOCK, None]
            _unit(block).astype("<f2").tofile(file)
    return {"source": SVD, "dim": width, "num_entities": int(has_row.sum())}


def _references(folder: str, ids: EntityIds) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct (row, column) of the matrix; columns of ids beyond the base follow those of its entities."""
    numbers = read_array(folder, "numbers")
    references = np.asarray(read_array(folder, "references"))
    offsets = read_array(folder, "references.offsets").astype(np.int64)
    places, found = places_of(numbers, references)
    outside, outside_places = np.unique(references[~found], return_inverse=True)
    columns = places.copy()
    columns[~found] = len(ids) + outside_places
    rows = [np.repeat(np.arange(len(ids)), offsets[1:] - offsets[:-1]), np.arange(len(ids))]
    all_columns = [columns, np.arange(len(ids))]
    named: dict[str, int] = {}
    extra: list[tuple[int, int]] = []
    for ordinal, types, links in read_values(os.path.join(folder, "other_references")):
        for one in (*types, *links):
            place = ids.ordinal(one)
            extra.append(
                (ordinal, named.setdefault(one, len(ids) + len(outside) + len(named)) if place is None else place)
            )
    if extra:
        alone = np.array(extra, np.int64)
        rows.append(alone[:, 0])
        all_columns.append(alone[:, 1])
    num_columns = len(ids) + len(outside) + len(named)
    pairs = np.unique(np.concatenate(rows) * num_columns + np.concatenate(all_columns))
    return pairs // num_columns, pairs % num_columns


def write_imported(path: str, folder: str, ids: EntityIds) -> dict[str, Any]:
    """Writes the vectors of the file at `path`, and returns what the manifest states of them.

    The file has the form of PyTorch-BigGraph's `wikidata_translation_v1.tsv.gz`: a line per key, `<URI>` or an id, and
    its numbers, between tabs; perhaps a header. Lines of ids that the base lacks are skipped. Of lines with the same
    id the first counts.

    Raises:
        UserError: the file cannot be read, a line has another width or is no vector, or no id is in the base.
    """
    runs = Runs(folder, VECTORS_NAME, num_items=_VECTORS_HELD)
    width = 0
    for number, fields in _vector_lines(path):
        width = width or len(fields) - 1
        if len(fields) - 1 != width:
            raise UserError(f"{path}, line {number}: {len(fields) - 1} numbers; the lines before it have {width}")
        ordinal = ids.ordinal(_id_of(fields[0]))
        if ordinal is not None:
            runs.extend([(ordinal, number, _vector(fields[1:], f"{path}, line {number}"))])
    if not runs.num_added:
        raise UserError(f"{path}: holds no vector of an entity of the base; give lines of: <{_URI}Q31> <tab> numbers")
    num_entities, last = 0, -1
    with open(os.path.join(folder, VECTORS_NAME), "wb") as file:
        for ordinal, _, vector in runs.merged():
            if ordinal != last:
                file.write(bytes(2 * width * (ordinal - last - 1)))  # entities without a vector
                file.write(vector)
                num_entities += 1
                last = ordinal
        file.truncate(2 * width * len(ids))
    return {"source": os.path.basename(path), "dim": width, "num_entities": num_entities}


def _vector_lines(path: str) -> Iterator[tuple[int, list[bytes]]]:
    """Returns number and fields of each line but the header, which has at most two fields."""
    for block in DumpFile(path).blocks():
        if not block.content:
            raise UserError(f"{path}, line {block.first_line}: too long for a vector")
        for number, line in enumerate(block.content.split(b"\n"), start=block.first_line):
            fields = line.rstrip(b"\r").split(b"\t")
            if line.strip() and not (number == 1 and len(fields) <= 2):
                if not 2 <= len(fields) <= DIM_MAX + 1:
                    raise UserError(
                        f"{path}, line {number}: {len(fields) - 1} numbers; give 1 to {DIM_MAX}, between tabs"
                    )
                yield number, fields


def _id_of(key: bytes) -> str:
    return key.decode(errors="replace").strip("<>").removeprefix(_URI)


def _vector(fields: list[bytes], where: str) -> bytes:
    try:
        vector = np.array(fields).astype(np.float64)
    except ValueError:
        raise UserError(f"{where}: a field is no number") from None
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: a number is not finite")
    return _unit(vector[None]).astype("<f2").tobytes()


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0.0, lengths, 1.0)
