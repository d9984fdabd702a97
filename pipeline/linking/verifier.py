"""A judge of links that the user brings: a callable that scores, for pictures and texts, what a name may mean.

    def verify(images, texts, candidates):
        return [[score of each candidate] for each picture with its text]

It is named by `--verifier module:function`, and is called with batches: one item per name in a text for which the
linker chose an entity. A larger score means a surer candidate; the scale is the callable's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file

_REMEDY = "repair it, and run again: finished shards are kept"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerifierCandidate:
    """An entity that a name in the text may mean, as a verifier sees it."""

    entity_id: str
    name: str
    description: str
    start: int
    """Where the name begins in the text, in characters."""
    end: int
    """Where it ends."""
    probability: float
    """The linker's, in [0, 1]."""
    similarity: float | None
    """Cosine of picture and entity by the filter."""


Verifier = Callable[
    [Sequence[Image.Image], Sequence[str], Sequence[Sequence[VerifierCandidate]]], Sequence[Sequence[float]]
]


@functools.lru_cache(maxsize=4)
def load_verifier(name: str) -> Verifier:
    """Returns the callable that `name`, "module:function", names.

    Raises:
        UserError: the name has another form, the module cannot be imported, or holds no such callable.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UserError(f"--verifier {name} is not of the form module:function, such as mine.judges:by_colour")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever a module does when it is imported
        raise UserError(
            f"--verifier {name}: the module {module_name} cannot be imported ({_words(error)}); it must be on the "
            "Python path of every worker"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"--verifier {name}: {module_name} has no {path}; name one of its functions")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"--verifier {name} is of type {type(found).__name__}, which cannot be called; name a function")
    return found  # type: ignore[no-any-return]


def verifier_fingerprint(name: str) -> str:
    """Returns the name of the callable with a hash of its module's file, and of the file that defines it elsewhere.

    Without a file it is the name alone. Files that these import are not seen.

    Raises:
        UserError: see `load_verifier`.
    """
    found = inspect.unwrap(load_verifier(name))
    module_name = name.partition(":")[0]  # pragma: no mutate: the name of a callable that is found has one colon
    paths = [getattr(importlib.import_module(module_name), "__file__", None)]
    with contextlib.suppress(TypeError):  # an object of a class, or built in
        paths.append(inspect.getsourcefile(found))
    return "@".join([name, *(sha256_of_file(path) for path in dict.fromkeys(paths) if path)])


def scores_of(
    name: str, images: Sequence[Image.Image], texts: Sequence[str], candidates: Sequence[Sequence[VerifierCandidate]]
) -> list[list[float]]:
    """Returns the scores that the verifier called `name` gives: one per candidate of each item.

    Raises:
        UserError: it raises, or returns something else than a finite number for each candidate.
    """
    verifier = load_verifier(name)
    try:
        returned: Any = verifier(images, texts, candidates)
        if inspect.isgenerator(returned):
            returned = list(returned)  # here, since its code may raise
    except Exception as error:
        where = inspect.trace()[-1]
        raise UserError(
            f"--verifier {name} raised {type(error).__name__}: {_words(error)} ({where.filename}, line {where.lineno}) "
            f"for a batch of {len(texts)} names, the first in the text {texts[0][:80]!r}; {_REMEDY}"
        ) from error
    rows = _as_list(name, returned, f"of {len(texts)} lists of scores, one per name")
    if len(rows) != len(texts):
        raise UserError(
            f"--verifier {name} returned scores for {len(rows)} names, and {len(texts)} were given; {_REMEDY}"
        )
    scores = []
    for row, ones, text in zip(rows, candidates, texts, strict=True):
        values = _as_list(name, row, "of scores, one per candidate,")
        if len(values) != len(ones):
            raise UserError(
                f"--verifier {name} returned {len(values)} scores for the {len(ones)} candidates of "
                f"{text[ones[0].start : ones[0].end]!r} in the text {text[:80]!r}; {_REMEDY}"
            )
        for value, one in zip(values, ones, strict=True):  # pragma: no mutate: their lengths were compared
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(
                    f"--verifier {name} returned {' '.join(repr(value).split())[:80]} for {one.entity_id} in the text "
                    f"{text[:80]!r}; a finite number is needed; {_REMEDY}"
                )
        scores.append([float(value) for value in values])
    return scores


def _as_list(name: str, value: Any, what: str) -> list[Any]:
    """Returns a sequence or an array as a list."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | bytes | dict) or not hasattr(value, "__iter__"):
        raise UserError(f"--verifier {name} returned {type(value).__name__} where a list {what} is needed; {_REMEDY}")
    return list(value)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
