"""What a benchmark is: one function, registered under a name, from a model and a folder of data to a result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluation.options import Options, OptionsT, parse_options
from evaluation.report.figures import Figure
from evaluation.sets.images import ImageSet, LabelledImages
from evaluation.sets.text import utf8
from pipeline.schema import UserError

# A number on fewer queries than this says next to nothing: groups of fewer show none. The limit is this project's own.
MIN_QUERIES = 5


class Unavailable(UserError):
    """A benchmark that cannot run: its data is not there, or the model lacks a part. The others still run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """The embeddings of a set of pictures or texts; pictures that could not be read are left out."""

    vectors: np.ndarray
    """float32 `[n, dim]`, L2-normalised; perhaps memory-mapped."""
    positions: np.ndarray
    """int64 `[n]`, rising: which members of the set."""
    num_unreadable: int = 0
    content_hash: str | None = None
    """SHA-256 over ids and contents; None when the pictures themselves were not seen."""
    embeddings_hash: str | None = None
    """SHA-256 of the files that the embeddings were read from; None: made here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What some numbers rest on: a set of pictures or texts, by hashes. None is what is not known or not given."""

    name: str
    """Of the set."""
    part: str = ""
    """The metrics that rest on it start with "<part>."; "": all of them do."""
    ids: str | None
    """SHA-256 over the ids, or the texts, of those that could be read."""
    prefix: str = ""
    """The folders that all ids start with, such as "GPR1200/images"."""
    ids_below_prefix: str | None = None
    """SHA-256 over the ids without the prefix."""
    contents: str | None = None
    """SHA-256 over ids and contents."""
    truth: str | None = None
    """SHA-256 over what is true of them, such as labels."""
    embeddings: str | None = None
    """SHA-256 of the files that ready embeddings were read from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddedSet(Embedded):
    """Embeddings, and what they are of; a benchmark puts the latter into `Result.data`."""

    provenance: Provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadableSet:
    """The pictures of a set that can be read, for fine-tuning, and what they are."""

    images: ImageSet
    positions: np.ndarray
    """int64 `[n]`, rising: which pictures of the set."""
    provenance: Provenance


class Model(Protocol):
    """What a benchmark may ask of a model. `evaluation.models` has those there are."""

    def identity(self, embeddings: Mapping[str, str], /) -> Mapping[str, Any]:
        """Returns what distinguishes one model from another, as JSON values, `hash` among them.

        Args:
            embeddings: set to the SHA-256 of the files of its ready embeddings, of the sets that were used.
        """
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What is done to a picture, as JSON values."""
        ...

    def embed(self, images: ImageSet, /) -> Embedded:
        """Returns the embeddings of `images`."""
        ...

    def embed_texts(self, name: str, texts: Sequence[str], /) -> Embedded:
        """Returns the embeddings of all `texts`; `name` is of the set of texts. Unavailable: no text function."""
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
    """Returns the SHA-256 of texts in their order, such as the ids of a set.

    Raises:
        UserError: a text cannot be held in UTF-8; the message shows it.
    """
    return hashlib.sha256(b"".join(utf8(one, "the text") + b"\0" for one in texts)).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a benchmark gets to work with."""

    model: Model
    data_dir: Path

    def embed(self, images: ImageSet, *, truth: bytes | None = None, part: str = "") -> EmbeddedSet:
        """Returns the model's embeddings of `images`, and what they are of.

        Args:
            images: all of them are embedded; the provenance states the ids of those that could be read.
            truth: what the metrics take for true of `images`, such as their labels: results of another truth do not
                compare.
            part: see `Provenance.part`.
        """
        embedded = self.model.embed(images)
        return _with_provenance(
            embedded,
            provenance(
                images.name,
                images.ids[embedded.positions].tolist(),
                part=part,
                contents=embedded.content_hash,
                truth=truth,
                embeddings=embedded.embeddings_hash,
            ),
        )

    def read(self, images: ImageSet, *, truth: bytes, part: str = "") -> ReadableSet:
        """Returns those of `images` that can be read, to fine-tune; all of them are read.

        Args:
            images: see `embed`.
            truth: see there.
            part: see there.
        """
        readable, positions, contents = self.model.tuner.read(images)
        known = provenance(images.name, readable.ids.tolist(), part=part, contents=contents, truth=truth)
        return ReadableSet(images=readable, positions=positions, provenance=known)

    def embed_texts(self, name: str, texts: Sequence[str], *, part: str = "") -> EmbeddedSet:
        """Returns the model's embeddings of all `texts`, and what they are of; `name` is of the set of texts."""
        embedded = self.model.embed_texts(name, texts)
        known = Provenance(
            name=name, part=part, ids=hash_of(texts), contents=hash_of(texts), embeddings=embedded.embeddings_hash
        )
        return _with_provenance(embedded, known)

    def folder(self, name: str, *, get: str, layout: str) -> Path:
        """Returns `data_dir / name`.

        Raises:
            Unavailable: it is not there; the message says where to `get` it and what its `layout` is.
        """
        path = self.data_dir / name
        if not path.exists():
            raise Unavailable(f"{path} is not there; get it from {get}, laid out as {layout}")
        return path


def provenance(
    name: str,
    ids: Sequence[str],
    *,
    part: str = "",
    contents: str | None = None,
    truth: bytes | None = None,
    embeddings: str | None = None,
) -> Provenance:
    """Returns what is known of a set of pictures.

    Args:
        name: of the set.
        ids: of the pictures, in their order.
        part: see `Provenance`.
        contents: see there.
        truth: the values that are true of them; they are hashed.
        embeddings: see `Provenance`.
    """
    # Of lists, which it takes too: the folders that all ids share.
    prefix = "/".join(os.path.commonprefix([one.split("/")[:-1] for one in ids]))
    return Provenance(
        name=name,
        part=part,
        ids=hash_of(ids),
        prefix=prefix,
        ids_below_prefix=hash_of(one[len(prefix) + 1 :] if prefix else one for one in ids),
        contents=contents,
        truth=None if truth is None else hashlib.sha256(truth).hexdigest(),
        embeddings=embeddings,
    )


def _with_provenance(embedded: Embedded, known: Provenance) -> EmbeddedSet:
    values = {field.name: getattr(embedded, field.name) for field in dataclasses.fields(Embedded)}
    return EmbeddedSet(**values, provenance=known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark measured; names of metrics are without the benchmark's own."""

    metrics: Mapping[str, float]
    counts: Mapping[str, Any]
    """How many pictures, queries, classes the numbers rest on."""
    data: Sequence[Provenance] = ()
    """What was embedded or read."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else makes two results comparable."""
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the benchmark used of the model's own."""
    items: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Metric to its values by query, picture or class, in an order that the data fixes; their mean is the metric."""
    num_items: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Of metrics that have no `items`."""
    chance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Metric to its value without any knowledge."""
    same_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metric to another that is the same here."""
    means: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Metric to those it is the mean of."""
    groups: Sequence[str] = ()
    """Groups of queries, such as "unseen.logos"; metrics of theirs start with "<group>.". Small ones show no number."""
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    """File name, without suffix, to figure."""
    not_measured: Sequence[str] = ()
    """Parts that had no data, one line per part: what was missing, and where to get it."""
    failed: Sequence[str] = ()
    """Parts that went wrong, one line per part, for the user to repair."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A registered benchmark."""

    name: str
    version: int
    """Of its protocol: results of different versions do not compare."""
    run: Callable[[Context, Any], Result]
    """From the context and the options."""
    summary: str
    options: type[Options]

    def parse(self, given: Mapping[str, str]) -> Options:
        """Returns its options; see `evaluation.options.parse_options`."""
        return parse_options(self.name, self.options, given)


_BENCHMARKS: dict[str, Benchmark] = {}


def register(
    name: str, *, version: int, options: type[OptionsT]
) -> Callable[[Callable[[Context, OptionsT], Result]], Callable[[Context, OptionsT], Result]]:
    """Returns a decorator that adds a function to the benchmarks, under `name`.

    `--help` shows the first paragraph of its docstring, and its options.

    Args:
        name: of the benchmark.
        version: of its protocol.
        options: its class of options, `Options` itself for none.
    """

    def add(run: Callable[[Context, OptionsT], Result]) -> Callable[[Context, OptionsT], Result]:
        summary = " ".join((run.__doc__ or "").strip().split("\n\n")[0].split())
        _BENCHMARKS[name] = Benchmark(name=name, version=version, run=run, summary=summary, options=options)
        return run

    return add


def all_benchmarks() -> dict[str, Benchmark]:
    """Returns the benchmarks by name, after importing every module of `evaluation.benchmarks`."""
    import evaluation.benchmarks

    for module in pkgutil.iter_modules(evaluation.benchmarks.__path__):
        importlib.import_module(f"evaluation.benchmarks.{module.name}")
    return dict(sorted(_BENCHMARKS.items()))
