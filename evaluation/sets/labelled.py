"""Labelled pictures for classification: a folder of class folders (ImageNet's layout), or a TFDS set."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.protocol import Context, EmbeddedSet, Unavailable
from evaluation.sets.images import LabelledImages, absent_images, folder_images
from evaluation.sets.listing import count_beside, list_classes, warn_of_unread
from evaluation.sets.text import nfc
from pipeline.schema import UserError


def read_labelled(
    context: Context,
    name: str,
    source: str,
    class_names: tuple[str, ...] | None = None,
    *,
    option: str,
    is_default: bool = True,
) -> LabelledImages:
    """Returns the pictures of `source`, at least one.

    Args:
        context: of the benchmark. Where the default folder is not there and its model has ready embeddings, their ids,
            `<class>/<file>`, stand for it.
        name: of the set of pictures, such as "knn_train".
        source: a folder of one folder per class, below the context's `data_dir` or absolute; or "tfds:<name>/<split>",
            such as "tfds:cifar10/train[:80%]", prepared below `data_dir`.
        class_names: of the training pictures; a test folder must have no other.
        option: that names another source, such as "knn.train".
        is_default: whether `source` is the default of the option, and not named by the user.

    Raises:
        Unavailable: the data is not there.
        UserError: a class folder or the split is empty, or a class is unknown.
    """
    if source.startswith("tfds:"):
        from evaluation.sets.tfds import read_tfds

        found = read_tfds(name, source.removeprefix("tfds:"), context.data_dir)
        if len(found.labels) == 0:
            raise UserError(f"{source} has 0 pictures, at least 1 is needed; name another split")
        found = dataclasses.replace(found, source=source)
        return found if class_names is None else _with_classes(found, class_names)
    root = context.data_dir / source
    if not root.is_dir():
        ready = context.model.known_ids(name)
        if ready is not None and is_default:
            return _of_ids(name, ready, class_names, f"{name}.ids")
        raise Unavailable(
            f"{root} is not there; get ImageNet from https://image-net.org and put one folder per class in it, each "
            f"with the pictures of the class, or name another such folder or a TFDS set with --option {option}=; ready "
            f"embeddings are {name}.npy and {name}.ids"
        )
    listings, unread = list_classes(root)
    if not listings:
        raise UserError(f"{root} has no folders; put one folder per class in it, each with the pictures of the class")
    names = _known([nfc(one) for one in listings], class_names, str(root))
    place = {one: position for position, one in enumerate(names)}
    paths: list[str] = []
    labels: list[int] = []
    for one, listing in listings.items():
        if not listing.paths:
            seen = f", only {', '.join(listing.unread)}, which is not read" if listing.unread else ""
            raise UserError(
                f"class {one!r} of {root} has no pictures{seen}, at least 1 is needed; fill or remove its folder"
            )
        paths += [f"{one}/{path}" for path in listing.paths]
        labels += [place[nfc(one)]] * len(listing.paths)
    warn_of_unread(root, unread)
    num_beside = count_beside(root)
    return LabelledImages(
        images=folder_images(name, root, paths),
        labels=np.array(labels, np.int64),
        class_names=names,
        source=source,
        num_unread_files=sum(unread.values()) + num_beside,
    )


def _of_ids(name: str, ids: Sequence[str], class_names: tuple[str, ...] | None, source: str) -> LabelledImages:
    """Returns pictures that are not here, by ids such as "cat/1.jpg", in the order that their folder would have."""
    if not ids:
        raise UserError(f"{source} has no ids, at least 1 is needed")
    parts = sorted(nfc(one).partition("/")[::2] for one in ids)
    for one, file in parts:
        if not one or not file:
            raise UserError(f"{source} has the id {one or '/' + file!r}; without pictures, ids must be <class>/<file>")
    names = _known([one for one, _ in parts], class_names, source)
    place = {one: position for position, one in enumerate(names)}
    return LabelledImages(
        images=absent_images(name, ["/".join(one) for one in parts]),
        labels=np.array([place[one] for one, _ in parts], np.int64),
        class_names=names,
        source=source,
    )


def _known(classes: Sequence[str], class_names: tuple[str, ...] | None, source: str) -> tuple[str, ...]:
    """Returns the names of all classes, in Unicode's form NFC: those of the training pictures where they are given."""
    names = tuple(map(nfc, class_names)) if class_names is not None else tuple(sorted(set(classes)))
    unknown = sorted(set(map(nfc, classes)) - set(names))
    if unknown:
        raise UserError(
            f"{source} has the class {unknown[0]!r}, which the training pictures do not; remove or rename it, or take "
            "another set"
        )
    return names


def check_training_classes(labels: np.ndarray, class_names: Sequence[str], source: str) -> None:
    """Checks that there are two classes or more and each has a training picture.

    Args:
        labels: int `[n]`, into `class_names`.
        class_names: of all classes.
        source: where the pictures are from, for the message.

    Raises:
        UserError: there is one class, or one has no picture.
    """
    empty = np.setdiff1d(np.arange(len(class_names)), labels)
    num_present = len(class_names) - len(empty)
    if num_present < 2:
        raise UserError(f"{source} has pictures of {num_present} class, at least 2 are needed; name other data")
    if len(empty):
        raise UserError(
            f"class {class_names[empty[0]]} of {source} has 0 training pictures ({len(empty)} of {len(class_names)} "
            f"classes {'has' if len(empty) == 1 else 'have'} none), at least 1 is needed; add some or leave the class "
            "out"
        )


def check_distinct_sources(context: Context, benchmark: str, sources: Mapping[str, str]) -> None:
    """Checks that no two options name one source, before anything is read.

    Args:
        context: of the benchmark.
        benchmark: its name, for the message.
        sources: name of an option to the folder or TFDS split that it names.

    Raises:
        UserError: two do, as the same text or by another path to one folder.
    """
    for (one, source), (other, same) in itertools.combinations(sources.items(), 2):
        if source == same or (context.data_dir / source).resolve() == (context.data_dir / same).resolve():
            raise UserError(_same_pictures(benchmark, (one, source), (other, same)))


def check_distinct_sets(benchmark: str, sources: Mapping[str, str], embedded: Mapping[str, EmbeddedSet]) -> None:
    """Checks that no two sets are of the same pictures, whatever paths lead to them.

    Pictures are known by their ids and contents. Those of ready embeddings are known by their ids and vectors: equal
    ids alone, such as "cat/1.jpg", may be of other pictures.

    Args:
        benchmark: see `check_distinct_sources`.
        sources: see there.
        embedded: the set of each of these options.

    Raises:
        UserError: two are of the same pictures.
    """
    for one, other in itertools.combinations(sources, 2):
        first, second = embedded[one], embedded[other]
        contents = first.content_hash
        if contents is not None and second.content_hash is not None:
            is_same = contents == second.content_hash
        else:
            is_same = first.provenance.ids == second.provenance.ids and np.array_equal(first.vectors, second.vectors)
        if is_same:
            raise UserError(_same_pictures(benchmark, (one, sources[one]), (other, sources[other])))


def _same_pictures(benchmark: str, first: tuple[str, str], other: tuple[str, str]) -> str:
    named = " and ".join(f"{benchmark}.{option}={source}" for option, source in (first, other))
    return (
        f"{named} are the same pictures, so pictures would find themselves or choose what they are scored by; name two "
        "different sets"
    )


def _with_classes(found: LabelledImages, class_names: tuple[str, ...]) -> LabelledImages:
    """Returns `found` with its labels among `class_names`, by name."""
    place = {one: position for position, one in enumerate(_known(found.class_names, class_names, found.source))}
    moved = np.array([place[nfc(one)] for one in found.class_names], np.int64)
    return dataclasses.replace(found, labels=moved[found.labels], class_names=tuple(place))
