"""What a benchmark is: one function, registered under a name, from a model and a folder of data to a result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluation.report.figures import Figure
from evaluation.sets.images import ImageSet, LabelledImages
from pipeline.schema import UserError


class Unavailable(UserError):
    """A benchmark that cannot run: its data is not there, or the model lacks a part. The others still run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """The embeddings of a set of pictures; pictures that could not be read are left out."""

    vectors: np.ndarray  # float32 [n, dim], L2-normalised; perhaps memory-mapped
    positions: np.ndarray  # int64 [n], rising: which pictures of the set
    num_unreadable: int
    content_hash: str | None = None  # SHA-256 over ids and contents; None when the pictures themselves were not seen


class Model(Protocol):
    """What a benchmark may ask of a model. `evaluation.models` has those there are."""

    def identity(self, sets: Iterable[str], /) -> Mapping[str, Any]:
        """Returns what tells one model from another, as JSON values, `hash` among them; `sets` are those embedded."""
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to a picture, as JSON values."""
        ...

    def embed(self, images: ImageSet, /) -> Embedded:
        """Returns the embeddings of `images`."""
        ...

    def embed_texts(self, name: str, texts: Sequence[str], /) -> np.ndarray:
        """Returns float32 `[n, dim]`, L2-normalised; `name` is of the set of texts. Unavailable: no text function."""
        ...

    def known_ids(self, name: str, /) -> list[str] | None:
        """Returns the ids of a set whose embeddings are ready; None: there are none, and pictures are needed."""
        ...

    @property
    def classifier(self) -> Any | None:
        """The entity classifier (`weights` [classes, dim], `entity_ids`, `scale`), or None."""
        ...

    @property
    def tuner(self) -> Tuner:
        """What fine-tunes. Unavailable: there are embeddings only."""
        ...


class Tuner(Protocol):
    """What fine-tuning asks of a model with an encoder."""

    def read(self, images: ImageSet, /) -> tuple[ImageSet, np.ndarray, str]:
        """Returns what of `images` can be read, their positions, and the SHA-256 over their ids and contents."""
        ...

    def fine_tuned(self, train: LabelledImages, scored: ImageSet, num_classes: int, config: Any, /) -> np.ndarray:
        """Returns the classes of `scored`, int64 `[n]`, after training on `train`."""
        ...


def hash_of(texts: Iterable[str]) -> str:
    """Returns the SHA-256 of texts in their order, such as the ids of a set."""
    return hashlib.sha256("".join(f"{one}\0" for one in texts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a benchmark gets to work with."""

    model: Model
    data_dir: Path
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of this benchmark, see `option`
    data: dict[str, dict[str, str | None]] = dataclasses.field(default_factory=dict)
    """What was embedded, by the name of the set: SHA-256 over its ids, over its contents, and over what is true of it;
    None for what is not known or not given."""
    known_options: dict[str, str] = dataclasses.field(default_factory=dict)  # those asked for so far, with defaults

    def embed(self, images: ImageSet, *, truth: bytes | None = None) -> Embedded:
        """Returns the model's embeddings of `images`, and notes what they are of.

        Args:
            images: all of them are embedded; results state the ids of those that could be read.
            truth: what the metrics take for true of `images`, such as their labels: results of another truth do not
                compare.

        Raises:
            UserError: an option was given that the benchmark has not asked for by now, before the long work.
        """
        self.check_options()
        embedded = self.model.embed(images)
        self._note(images.name, images.ids[embedded.positions].tolist(), embedded.content_hash, truth)
        return embedded

    def read(self, images: ImageSet, *, truth: bytes) -> tuple[ImageSet, np.ndarray]:
        """Returns what of `images` can be read, to fine-tune, and their positions; and notes what they are.

        Args:
            images: all of them are read.
            truth: as `embed` has it.
        """
        readable, positions, contents = self.model.tuner.read(images)
        self._note(images.name, readable.ids.tolist(), contents, truth)
        return readable, positions

    def embed_texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """Returns the model's embeddings of `texts`, float32 `[n, dim]`, and notes what they are of.

        Raises:
            UserError: as `embed` has it.
        """
        self.check_options()
        vectors = self.model.embed_texts(name, texts)
        self._note(name, texts, hash_of(texts), None)
        return vectors

    def _note(self, name: str, ids: Sequence[str], contents: str | None, truth: bytes | None) -> None:
        hashed_truth = None if truth is None else hashlib.sha256(truth).hexdigest()
        self.data[name] = {"ids": hash_of(ids), "contents": contents, "truth": hashed_truth}

    def option(self, name: str, default: str) -> str:
        """Returns what `--option <benchmark>.<name>=<value>` gives, or `default`."""
        self.known_options[name] = default
        return self.options.get(name, default)

    def check_options(self) -> None:
        """Returns nothing when all options given are among those that the benchmark has asked for.

        Raises:
            UserError: one is not; the message names those it has.
        """
        unknown = sorted(set(self.options) - set(self.known_options))
        if unknown:
            known = ", ".join(f"{name} (default {value!r})" for name, value in self.known_options.items()) or "none"
            raise UserError(f"no option {unknown[0]!r}; it has: {known}")

    def folder(self, name: str, *, get: str, layout: str) -> Path:
        """Returns `data_dir / name`.

        Raises:
            Unavailable: it is not there; the message says where to `get` it and what its `layout` is.
        """
        path = self.data_dir / name
        if not path.exists():
            raise Unavailable(f"{path} is not there; get it from {get}, laid out as {layout}")
        return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark measured; names of metrics are without the benchmark's own."""

    metrics: Mapping[str, float]
    counts: Mapping[str, Any]  # how many pictures, queries, classes the numbers stand on
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what else makes two results comparable
    items: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Metric to its values by query, picture or class, in an order that the data fixes; their mean is the metric."""
    means: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # metric to those it is the mean of
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)  # file name, without suffix, to figure
    not_measured: Sequence[str] = ()  # parts that had no data, a line each: what was missing, and where to get it
    failed: Sequence[str] = ()  # parts that went wrong, a line each, for the user to mend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A registered benchmark."""

    name: str
    version: int  # of its protocol: results of different versions do not compare
    run: Callable[[Context], Result]
    summary: str
    options: str  # what it says of its options; "" for none


_BENCHMARKS: dict[str, Benchmark] = {}


def register(name: str, *, version: int) -> Callable[[Callable[[Context], Result]], Callable[[Context], Result]]:
    """Returns a decorator that adds a function to the benchmarks, under `name`.

    --help shows the first paragraph of its docstring, and the one that starts with "Options: ".
    """

    def add(run: Callable[[Context], Result]) -> Callable[[Context], Result]:
        paragraphs = [" ".join(one.split()) for one in (run.__doc__ or "").strip().split("\n\n")]
        options = next((one for one in paragraphs if one.startswith("Options: ")), "")
        _BENCHMARKS[name] = Benchmark(name=name, version=version, run=run, summary=paragraphs[0], options=options)
        return run

    return add


def all_benchmarks() -> dict[str, Benchmark]:
    """Returns the benchmarks by name, after importing every module of `evaluation.benchmarks`."""
    import evaluation.benchmarks

    for module in pkgutil.iter_modules(evaluation.benchmarks.__path__):
        importlib.import_module(f"evaluation.benchmarks.{module.name}")
    return dict(sorted(_BENCHMARKS.items()))
