"""Ground truth of Revisited Oxford and Paris, read from its pickle without running what a pickle might hold."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from pipeline.schema import UserError

WHERE = "http://cmp.felk.cvut.cz/revisitop"


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

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"an array has byte order {state[1]!r}")
        self.code = state[1] + self.code.lstrip("<>|=")

    def values(self, raw: object) -> np.ndarray:
        """Returns what `raw` holds, `[n]`."""
        if "O" in self.code:
            if not isinstance(raw, list):
                raise TypeError("an array of objects is not a list of plain values")
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

    def __setstate__(self, state: tuple[Any, ...]) -> None:
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
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
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
            raise UserError(f"the ground truth names {module}.{name}, which is not a NumPy array; get it again")
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
            f"the ground truth has no field {error}; it is of another version, get the revisited one from {WHERE}"
        ) from error
    except (
        pickle.UnpicklingError, EOFError, TypeError, ValueError, IndexError, AttributeError, ImportError, OverflowError
    ) as error:  # fmt: skip
        raise UserError(f"the ground truth cannot be read ({type(error).__name__}: {error}); get it again") from error
    if len(queries) != len(query_names):
        raise UserError(f"the ground truth has {len(queries)} queries and {len(query_names)} names; get it again")
    for name, query in zip(query_names, queries, strict=True):
        stated = [*query.easy, *query.hard, *query.junk]
        outside = [position for position in stated if not 0 <= position < len(gallery_names)]
        if outside or len(query.box) != 4:
            raise UserError(
                f"the ground truth of {name} has position {outside[:1]} of {len(gallery_names)} pictures and a box of "
                f"{len(query.box)} numbers, it must have none outside and 4; get it again"
            )
        left, top, right, bottom = query.box
        if not (left < right < math.inf and top < bottom < math.inf):
            raise UserError(
                f"the ground truth of {name} has the box {query.box}, left must be below right and top below bottom; "
                "get it again"
            )
        if len(set(stated)) != len(stated):
            twice = next(position for position in stated if stated.count(position) > 1)
            raise UserError(f"the ground truth of {name} has picture {twice} twice, once is allowed; get it again")
    return GroundTruth(gallery_names=gallery_names, query_names=query_names, queries=queries)


def _listed(values: Any) -> list[Any]:
    values = values.values.reshape(-1).tolist() if isinstance(values, _Array) else values
    if not isinstance(values, list | tuple):
        raise TypeError(f"a {type(values).__name__} is in the place of a list or an array")
    return list(values)


def _positions(values: Any) -> tuple[int, ...]:
    listed = _listed(values)
    if any(int(one) != one for one in listed):
        raise ValueError("a position is not a whole number")
    return tuple(int(one) for one in listed)


def _names(values: Any) -> tuple[str, ...]:
    names = tuple(one.decode("latin1") if isinstance(one, bytes) else one for one in _listed(values))
    if not all(isinstance(one, str) for one in names):
        raise TypeError("a name is not text")
    return names
