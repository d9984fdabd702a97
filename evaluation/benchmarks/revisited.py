"""Revisited Oxford and Paris: retrieval of landmarks, at three grades of difficulty (Radenovic et al. 2018).

Protocol (version 1), after the benchmark's own script. Average precision is the area under the precision-recall curve
by trapezoids. Junk leaves the ranking. A query without positives leaves the mean. Precision at k divides by
min(rank of the last positive, k). Queries are cropped to their box before they are embedded. Distractors, where there
are any, follow the gallery. Equal similarities rank by position; those within 3e-6 of a positive's or of junk's are
compared again in float64.

    grade    positive      junk
    easy     easy          junk and hard
    medium   easy, hard    junk
    hard     hard          junk and easy
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evaluation.metrics.blocks import MadeRows, Rows, Stacked, read_rows
from evaluation.metrics.nearest import nearest
from evaluation.metrics.ranks import ranks_without, target_ranks
from evaluation.models.arrays import map_array, read_ids
from evaluation.protocol import Context, Embedded, Result, Unavailable, hash_of, register
from evaluation.report import figures
from evaluation.sets.images import ImageSet, absent_images, folder_images, list_images
from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file

GRADES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
PRECISION_RANKS = (1, 5, 10)
_NUM_QUERIES_SHOWN, _NUM_SHOWN = 8, 10
_FIELDS = ("easy", "hard", "junk")
_DISTRACTORS = "revisitop1m"  # the set of their embeddings
_NORMALISED_AT_ONCE = 256  # rows, so that they stay in the core's cache
_WHERE = "http://cmp.felk.cvut.cz/revisitop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryTruth:
    """What the benchmark says of one query: gallery positions, and the box of the query in pixels."""

    easy: tuple[int, ...]
    hard: tuple[int, ...]
    junk: tuple[int, ...]
    box: tuple[float, float, float, float]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The names of the pictures, and the truth of every query in the order of `query_names`."""

    gallery_names: tuple[str, ...]
    query_names: tuple[str, ...]
    queries: tuple[QueryTruth, ...]


class _DType:
    """Stands for `numpy.dtype` in a pickle: numbers, text and lists of objects only."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biufSU][0-9]{1,9}|O[48]?)", code):
            raise ValueError(f"an array has type {code!r}; only numbers and text are read")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"an array has byte order {state[1]!r}")
        self.code = state[1] + self.code.lstrip("<>|=")

    def values(self, raw: object) -> np.ndarray:
        """Returns what `raw` holds, `[n]`."""
        if "O" in self.code:
            if not isinstance(raw, list):
                raise TypeError("an array of objects is no list")
            values = np.empty(len(raw), object)
            values[:] = raw
            return values
        # Python 2 wrote bytes as text; the unpickler reads it as latin1.
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # type: ignore[call-overload]
        return np.frombuffer(data, np.dtype(self.code))


class _Array:
    """Stands for `numpy.ndarray` in a pickle."""

    def __init__(self, *made_from: object) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.values = dtype.values(raw).reshape(shape, order="F" if is_fortran else "C")


def _array_from_buffer(raw: object, dtype: _DType, shape: Sequence[int], order: str, *more: object) -> _Array:
    array = _Array()
    array.values = dtype.values(raw).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _DType, raw: object) -> Any:
    return dtype.values(raw)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are written as {encoding!r}")
    return text.encode("latin1")


# What the ground truth's pickle may name: arrays, under numpy's module names of then and now, and how protocols 0 to 2
# write bytes. Each has a stand-in here, so that nothing of what the file names is called.
_STAND_INS: dict[tuple[str, str], Callable] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.multiarray", "_reconstruct"): _Array,
    ("numpy.multiarray", "scalar"): _scalar,
    ("numpy.numeric", "_frombuffer"): _array_from_buffer,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): lambda: b"",
    ("builtins", "bytes"): lambda: b"",
}


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays; a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((re.sub(r"^numpy\._?core\.", "numpy.", module), name))
        if found is None:
            raise UserError(f"the ground truth names {module}.{name}, only numpy arrays may stand there; get it anew")
        return found


def read_ground_truth(file: BinaryIO) -> GroundTruth:
    """Returns the content of `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, without running what a pickle might hold.

    Raises:
        UserError: it names anything but arrays, is cut, lacks a field, points outside the gallery, or has an empty box.
    """
    try:
        content = _ArraysOnly(file, encoding="latin1").load()
        queries = tuple(
            QueryTruth(
                easy=_positions(query["easy"]),
                hard=_positions(query["hard"]),
                junk=_positions(query["junk"]),
                box=tuple(float(side) for side in _listed(query["bbx"])),  # type: ignore[arg-type]
            )
            for query in _listed(content["gnd"])
        )
        gallery_names, query_names = _names(content["imlist"]), _names(content["qimlist"])
    # The original Oxford and Paris truths have "ok" and "junk" only.
    except KeyError as error:
        raise UserError(
            f"the ground truth has no field {error}; it is of another version, get the revisited one from {_WHERE}"
        ) from error
    except (
        pickle.UnpicklingError, EOFError, TypeError, ValueError, IndexError, AttributeError, ImportError, OverflowError
    ) as error:  # fmt: skip
        raise UserError(f"the ground truth cannot be read ({type(error).__name__}: {error}); get it anew") from error
    if len(queries) != len(query_names):
        raise UserError(f"the ground truth has {len(queries)} queries and {len(query_names)} names; get it anew")
    for name, query in zip(query_names, queries, strict=True):
        stated = [*query.easy, *query.hard, *query.junk]
        outside = [position for position in stated if not 0 <= position < len(gallery_names)]
        if outside or len(query.box) != 4:
            raise UserError(
                f"the ground truth of {name} has position {outside[:1]} of {len(gallery_names)} pictures and a box of "
                f"{len(query.box)} numbers, it must have none outside and 4; get it anew"
            )
        left, top, right, bottom = query.box
        if not (left < right < math.inf and top < bottom < math.inf):
            raise UserError(
                f"the ground truth of {name} has the box {query.box}, left must be below right and top below bottom; "
                "get it anew"
            )
        if len(set(stated)) != len(stated):
            twice = next(position for position in stated if stated.count(position) > 1)
            raise UserError(f"the ground truth of {name} has picture {twice} twice, once is allowed; get it anew")
    return GroundTruth(gallery_names=gallery_names, query_names=query_names, queries=queries)


def _listed(values: Any) -> list:
    values = values.values.reshape(-1).tolist() if isinstance(values, _Array) else values
    if not isinstance(values, list | tuple):
        raise TypeError(f"a {type(values).__name__} stands where a list or an array must")
    return list(values)


def _positions(values: Any) -> tuple[int, ...]:
    listed = _listed(values)
    if any(int(one) != one for one in listed):
        raise ValueError("a position is no whole number")
    return tuple(int(one) for one in listed)


def _names(values: Any) -> tuple[str, ...]:
    names = tuple(one.decode("latin1") if isinstance(one, bytes) else one for one in _listed(values))
    if not all(isinstance(one, str) for one in names):
        raise TypeError("a name is no text")
    return names


def trapezoidal_average_precision(positive_ranks: Sequence[int] | np.ndarray, num_positives: int) -> float:
    """Returns the area under the precision-recall curve, by trapezoids.

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted.
        num_positives: at least 1; those that were not ranked add nothing.
    """
    ranks = np.asarray(positive_ranks, np.float64)
    found = np.arange(len(ranks))
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    return float((before + (found + 1) / (ranks + 1)).sum() / 2 / num_positives)


def precision_at(positive_ranks: Sequence[int] | np.ndarray, k: int) -> float:
    """Returns the share of positives among the first min(rank of the last positive, k).

    Args:
        positive_ranks: ranks of the positives from 0, ascending, junk not counted; at least one.
        k: at least 1.
    """
    depth = min(int(max(positive_ranks)) + 1, k)
    return int((np.asarray(positive_ranks) < depth).sum()) / depth


def revisited_metrics(
    queries: np.ndarray,
    gallery: Rows,
    truth: GroundTruth,
    *,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns `<grade>.map` and `<grade>.precision_at_{1,5,10}`, and the values of the queries behind each.

    A query without positives of a grade has no value there; a grade without queries has no metric.

    Args:
        queries: L2-normalised float32 `[queries, dim]`, cropped.
        gallery: L2-normalised floats `[n, dim]`: the pictures of `truth`, then distractors.
        truth: its positions are rows of `gallery`.
        num_threads: see `evaluation.metrics.ranks.target_ranks`.
        block_rows: see there.

    Raises:
        ValueError: shapes do not fit, or an embedding is not finite.
    """
    if len(queries) != len(truth.queries) or gallery.shape[0] < len(truth.gallery_names):
        raise ValueError(
            f"there are {len(queries)} queries and {gallery.shape[0]} pictures; the ground truth has "
            f"{len(truth.queries)} and {len(truth.gallery_names)}"
        )
    stated = [np.array([*one.easy, *one.hard, *one.junk], np.int64) for one in truth.queries]
    ranks = target_ranks(queries, gallery, stated, num_threads=num_threads, block_rows=block_rows)
    by_field = [
        dict(zip(_FIELDS, np.split(own, np.cumsum([len(one.easy), len(one.hard)])), strict=True))
        for own, one in zip(ranks, truth.queries, strict=True)
    ]
    values: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    for grade, (positive_fields, junk_fields) in GRADES.items():
        rows = []
        for own in by_field:
            positives = np.sort(np.concatenate([own[field] for field in positive_fields]))
            if len(positives) == 0:
                continue
            from_0 = ranks_without(positives, np.concatenate([own[field] for field in junk_fields])) - 1
            average = trapezoidal_average_precision(from_0, len(from_0))
            rows.append([average, *(precision_at(from_0, k) for k in PRECISION_RANKS)])
        names = ["map", *(f"precision_at_{k}" for k in PRECISION_RANKS)]
        for name, column in zip(names, np.array(rows).reshape(-1, len(names)).T, strict=True):
            items[f"{grade}.{name}"] = column
            if len(column):
                values[f"{grade}.{name}"] = float(column.mean())
    return values, items


class NormalisedRows(MadeRows):
    """Rows of an array at length 1, made anew whenever they are read.

    Args:
        rows: floats `[n, dim]`, perhaps memory-mapped.
        name: of what they are, for messages.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self._rows = rows
        self._name = name
        self.shape = (rows.shape[0], rows.shape[1])

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills `out`, float32 `[n, dim]`, with the rows from `start` on.

        Raises:
            UserError: a row is not finite or a zero vector.
        """
        for first in range(0, len(out), _NORMALISED_AT_ONCE):
            part = out[first : first + _NORMALISED_AT_ONCE]
            read = read_rows(self._rows, start + first, start + first + len(part), part)
            norms = np.sqrt(np.square(read).sum(axis=1))
            # Not `norms < 1e-6`: NaN must not pass.
            wrong = np.flatnonzero(~((norms >= 1e-6) & (norms < np.inf)))
            if len(wrong):
                raise UserError(
                    f"row {start + first + int(wrong[0])} of {self._name} has norm {norms[wrong[0]]}, it must be "
                    "finite and above 0; embed again"
                )
            np.divide(read, norms[:, None], out=part)


@register("roxford", version=1)
def roxford(context: Context) -> Result:
    """Retrieval of Oxford's landmarks, revisited: easy, medium, hard; perhaps with a million distractors.

    Options: distractors (their folder, such as revisitop1m/jpg; a .npy file of embeddings, with a file .ids beside it;
    or revisitop1m, when embeddings of that set are ready; none).

    Raises:
        Unavailable: ground truth, pictures or distractors are not there.
        UserError: they are not as published.
    """
    return _revisited(context, "roxford", "roxford5k", num_pictures=4_993, num_queries=70)


@register("rparis", version=1)
def rparis(context: Context) -> Result:
    """Retrieval of Paris's landmarks, revisited: easy, medium, hard; perhaps with a million distractors.

    Options: distractors (their folder, such as revisitop1m/jpg; a .npy file of embeddings, with a file .ids beside it;
    or revisitop1m, when embeddings of that set are ready; none).

    Raises:
        Unavailable: ground truth, pictures or distractors are not there.
        UserError: they are not as published.
    """
    return _revisited(context, "rparis", "rparis6k", num_pictures=6_322, num_queries=70)


def _revisited(context: Context, name: str, folder: str, *, num_pictures: int, num_queries: int) -> Result:
    layout = (
        f"{folder}/gnd_{folder}.pkl and {folder}/jpg/<name>.jpg, {num_pictures:,} pictures and {num_queries} queries"
    )
    chosen = context.option("distractors", "")
    root = context.folder(folder, get=_WHERE, layout=layout)
    path = root / f"gnd_{folder}.pkl"
    if not path.exists():
        raise Unavailable(f"{path} is not there; get it from {_WHERE}, laid out as {layout}")
    with open(path, "rb") as file:
        truth = read_ground_truth(file)
    if (len(truth.gallery_names), len(truth.queries)) != (num_pictures, num_queries):
        raise UserError(
            f"{path} has {len(truth.gallery_names)} pictures and {len(truth.queries)} queries, {num_pictures} and "
            f"{num_queries} are needed; it is of another version, get it from {_WHERE}"
        )
    # Ready embeddings need no pictures.
    if context.model.known_ids(name) is None and not (root / "jpg").is_dir():
        raise Unavailable(
            f"{root / 'jpg'} is not there; get it from {_WHERE}, laid out as {layout}; ready embeddings are {name} and "
            f"{name}_queries, .npy and .ids"
        )
    ready = context.model.known_ids(_DISTRACTORS) if chosen == _DISTRACTORS else None
    if chosen and ready is None and not (context.data_dir / chosen).exists():
        raise Unavailable(
            f"{context.data_dir / chosen} is not there; get the distractors from {_WHERE}, and name revisitop1m/jpg, a "
            f".npy file of their embeddings [n, dim], or {_DISTRACTORS} where those of that set are ready"
        )
    pictures = folder_images(name, root, [f"jpg/{one}.jpg" for one in truth.gallery_names])
    boxes = [one.box for one in truth.queries]
    cropped = folder_images(f"{name}_queries", root, [f"jpg/{one}.jpg" for one in truth.query_names], boxes=boxes)
    gallery = _embed_all(context, pictures)
    queries = _embed_all(context, cropped, truth=repr(truth).encode())
    parts: list[Rows] = [gallery.vectors]
    num_unreadable = 0
    if ready is not None:
        parts.append(context.embed(absent_images(_DISTRACTORS, sorted(ready))).vectors)
    elif chosen:
        distractors, num_unreadable = _distractors(context, context.data_dir / chosen)
        parts.append(distractors)
    dims = {part.shape[1] for part in (queries.vectors, *parts)}
    if len(dims) > 1:
        raise UserError(
            f"the embeddings of queries, pictures and distractors have {', '.join(map(str, sorted(dims)))} dimensions; "
            "embed all with one model"
        )
    asked = read_rows(queries.vectors, 0, num_queries)
    values, items = revisited_metrics(asked, Stacked(parts), truth)
    return Result(
        metrics=values,
        counts={
            "num_pictures": num_pictures,
            "num_queries": num_queries,
            "num_distractors": parts[1].shape[0] if chosen else 0,
            "num_unreadable_distractors": num_unreadable,
            **{f"{grade}.num_queries": len(items[f"{grade}.map"]) for grade in GRADES},
        },
        settings={"num_distractors": parts[1].shape[0] if chosen else 0},
        items=items,
        figures={"grid": _grid(cropped, pictures, asked, gallery.vectors, truth)},
    )


def _grid(
    cropped: ImageSet, pictures: ImageSet, queries: np.ndarray, gallery: Rows, truth: GroundTruth
) -> figures.Figure:
    chosen = np.linspace(0, len(queries) - 1, _NUM_QUERIES_SHOWN).astype(int).tolist()
    found = nearest(gallery, queries[chosen], _NUM_SHOWN).positions.tolist()
    rows = []
    for query, positions in zip(chosen, found, strict=True):
        one = truth.queries[query]
        right = {position: True for position in (*one.easy, *one.hard)} | dict.fromkeys(one.junk)
        rows.append(
            figures.GridRow(query=query, hits=[(position, right.get(position, False)) for position in positions])
        )
    return figures.Grid(
        title=f"queries and their first {_NUM_SHOWN} pictures, distractors left out; medium, junk in grey",
        images=cropped,
        hit_images=pictures,
        rows=rows,
    )


def _embed_all(context: Context, images: ImageSet, *, truth: bytes | None = None) -> Embedded:
    embedded = context.embed(images, truth=truth)
    if len(embedded.positions) != len(images):
        raise UserError(
            f"{images.name} has {len(embedded.positions)} pictures that can be read, all {len(images)} are needed; get "
            f"the others from {_WHERE}"
        )
    return embedded


def _distractors(context: Context, path: Path) -> tuple[Rows, int]:
    """Returns the embeddings of the pictures in a folder, and how many could not be read; or those of a `.npy` file.

    A file's rows may have any length above 0. The ids of its pictures stand in a file `.ids` beside it, one a line.
    Whether another model made them cannot be told.
    """
    if path.is_dir():
        names = list_images(path)
        if not names:
            raise UserError(f"{path} holds no pictures, at least 1 is needed; name the folder revisitop1m/jpg")
        embedded = context.embed(folder_images(_DISTRACTORS, path, names))
        return embedded.vectors, embedded.num_unreadable
    rows = map_array(path)
    if rows.ndim != 2 or len(rows) == 0 or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(f"{path} has shape {rows.shape} of {rows.dtype}; floats [n, dim] are needed, n at least 1")
    ids, ids_path = None, path.with_suffix(".ids")
    if ids_path.exists():
        ids = read_ids(ids_path)
        if len(ids) != len(rows):
            raise UserError(f"{ids_path} has {len(ids)} ids and {path.name} {len(rows)} rows; give one id a row")
    print(
        f"warning: nothing tells whether {path} is of this model; the folder of the distractors' pictures would be",
        file=sys.stderr,
    )
    context.data[_DISTRACTORS] = {
        "ids": ids if ids is None else hash_of(ids),  # None: `compare` takes no two files for the same pictures
        "contents": None,
        "truth": None,
        "embeddings": sha256_of_file(path),
    }
    return NormalisedRows(rows, str(path)), 0
