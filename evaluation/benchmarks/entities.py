"""Entity prediction: does the classifier name what a picture shows, among all entities that it knows?

Protocol (version 4). Pictures of a held-out part of an Image-to-Entities set, each with one true entity or more; or, of
a file of pictures, the renderings that training never saw of entities that it saw. True entities that are no class are
left out and counted; so are pictures that have no other. All classes compete, and equal scores rank by entity id.

Accuracy at k: any true entity is among the first k. Mean reciprocal rank: of the first true entity. mAP: a picture's
average precision is the mean of the precisions at its true entities, over the whole ranking.

By frequency: each true entity of a picture counts by itself, and the picture's other true entities leave its ranking.
A class with fewer than 10 training pictures is tail, one with 100 or more is head. Both limits are this project's
choice, and options. The counts are those of the training set's vocabulary, which the option vocabulary names; without
it nothing is measured by frequency. A class that the vocabulary lacks is in no group, and counted. (Version 2 took the
counts of the held-out set; version 3 took a class that the vocabulary lacks for tail.)

Calibration: the softmax over all classes, of the classifier's scale times the cosine, gives the first class a
probability. Expected calibration error, over 15 bins of equal width, open below: the mean of |accuracy - mean
probability|, weighted by pictures. A picture is right when its first class is a true entity.

A model without a classifier is given one: the embeddings of "name, description" of the vocabulary's entities, at scale
100, this project's choice.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.metrics.blocks import Rows, blocks, take_rows
from evaluation.metrics.ranks import average_precision, ranks_without, target_ranks
from evaluation.protocol import Context, Result, hash_of, register
from evaluation.report import figures
from evaluation.sets.images import ImageSet
from evaluation.sets.renderings import Pictures, read_pictures
from evaluation.sets.tfds import PreparedSet, read_examples
from pipeline.schema import UserError, entity_text

PROTOCOL_VERSION = 4
ACCURACY_RANKS = (1, 5)
TAIL_BELOW, HEAD_FROM = 10, 100  # training pictures
GROUPS = ("head", "middle", "tail")
NUM_BINS = 15
NUM_MAPPED = 12  # entities in the map
TEXT_SCALE = 100.0
_NO_COUNTS = (
    "head, middle and tail: they go by the counts of training, which are not known here; give --option "
    "entities.vocabulary=<the training set's vocabulary.jsonl>"
)
_BLOCK_CLASSES = 8192
_BLOCK_PICTURES = 256
_LAYOUT = (
    "an I2E set (dataset_info.json, features.json, i2e-train.tfrecord-*, vocabulary.jsonl), or name a Parquet file"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entity:
    """One line of a set's vocabulary."""

    entity_id: str
    name: str
    description: str
    image_count: int  # training pictures

    @property
    def text(self) -> str:
        """What is embedded where there is no classifier, in one line."""
        return entity_text(self.name, self.description)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities can be believed; bin b holds those above b / bins and up to (b + 1) / bins."""

    num_pictures: np.ndarray  # int64 [bins]
    mean_confidences: np.ndarray  # float64 [bins]; 0 for an empty bin
    accuracies: np.ndarray  # float64 [bins]; 0 for an empty bin
    error: float  # the expected calibration error


def class_ranks(
    embeddings: np.ndarray,
    weights: Rows,
    truths: Sequence[np.ndarray],
    entity_ids: Sequence[str],
    *,
    num_threads: int | None = None,
    block_rows: int | None = None,
) -> list[np.ndarray]:
    """Returns the ranks, from 1, of each picture's true classes: int64, one array a picture; ties rank by entity id.

    Classes are read a block at a time; no array has a value for each picture and class.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        weights: L2-normalised floats `[classes, dim]`.
        truths: positions of classes, one array a picture.
        entity_ids: the classes' ids, unique.
        num_threads: None: one a core.
        block_rows: classes at a time; None: as `target_ranks` has it.

    Raises:
        UserError: there are not as many ids as classes, an id stands there twice, or the width is another.
        ValueError: a value is not finite, or a truth is no class.
    """
    _check_classes(embeddings, weights, entity_ids)
    order = np.argsort(np.array(entity_ids, dtype=np.str_))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    # Ties rank by position, so the classes are read in the order of their ids.
    rows = weights if (order == np.arange(len(order))).all() else _Ordered(weights, order)
    targets = [place[np.asarray(one, np.int64)] for one in truths]
    return target_ranks(embeddings, rows, targets, num_threads=num_threads, block_rows=block_rows)


def top_probabilities(
    embeddings: np.ndarray,
    weights: Rows,
    scale: float,
    *,
    num_threads: int | None = None,
    block_rows: int = _BLOCK_CLASSES,
) -> np.ndarray:
    """Returns the softmax's largest probability, float64 `[n]`.

    Logits are `scale * embeddings @ weights.T`. Classes are read a block at a time. The result does not depend on the
    number of threads.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`.
        weights: L2-normalised floats `[classes, dim]`.
        scale: of the logits, above 0.
        num_threads: None: one a core.
        block_rows: classes at a time.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(embeddings).all():
        raise ValueError("an embedding is not finite; embed again")
    embeddings = np.asarray(embeddings, np.float32)
    tops = np.full(len(embeddings), -np.inf, np.float32)  # the largest cosine so far
    sums = np.zeros(len(embeddings))  # of exp(scale * (cosine - top))
    parts = [slice(start, start + _BLOCK_PICTURES) for start in range(0, len(embeddings), _BLOCK_PICTURES)]

    def add(part: slice, block: np.ndarray) -> None:
        cosines = embeddings[part] @ block.T
        new_tops = np.maximum(tops[part], cosines.max(axis=1))
        # Scaled after the subtraction, which is exact for close values: the top classes decide the sum.
        cosines -= new_tops[:, None]
        cosines *= np.float32(scale)
        np.exp(cosines, out=cosines)
        sums[part] *= np.exp(scale * (tops[part].astype(np.float64) - new_tops))
        sums[part] += cosines.sum(axis=1, dtype=np.float64)
        tops[part] = new_tops

    # Each thread runs BLAS alone: a product is then the same however many threads there are.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool,
    ):
        for _, block in blocks(weights, block_rows):
            for job in [pool.submit(add, part, block) for part in parts]:
                job.result()
    return 1 / sums


def accuracy_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share of ranks, from 1, that are at most `k`."""
    return float(np.mean(ranks <= k))


def calibration(confidences: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> Calibration:
    """Returns the expected calibration error and its bins of equal width; a confidence of 0 is in the first.

    Args:
        confidences: float `[n]`, in [0, 1]; n at least 1.
        correct: bool `[n]`.
        num_bins: at least 1.

    Raises:
        ValueError: a confidence is outside [0, 1].
    """
    if len(confidences) == 0 or not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("confidences must lie in [0, 1], and one at least must be given")
    bins = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    uses = np.bincount(bins, minlength=num_bins)
    divisors = np.maximum(uses, 1)
    means = np.bincount(bins, weights=confidences, minlength=num_bins) / divisors
    accuracies = np.bincount(bins, weights=correct, minlength=num_bins) / divisors
    return Calibration(
        num_pictures=uses,
        mean_confidences=means,
        accuracies=accuracies,
        error=float(np.sum(uses * np.abs(accuracies - means)) / len(confidences)),
    )


def frequency_groups(
    image_counts: np.ndarray, *, tail_below: int = TAIL_BELOW, head_from: int = HEAD_FROM
) -> np.ndarray:
    """Returns "head", "middle" or "tail" for each class, unicode `[classes]`.

    Args:
        image_counts: int `[classes]`, training pictures.
        tail_below: a class with fewer pictures is tail.
        head_from: a class with as many pictures or more is head.

    Raises:
        UserError: the limits are not in order.
    """
    if not 0 <= tail_below <= head_from:
        raise UserError(
            f"tail is below {tail_below} pictures and head from {head_from}; tail must end where head begins"
        )
    return np.where(image_counts >= head_from, "head", np.where(image_counts < tail_below, "tail", "middle"))


def entity_metrics(
    embeddings: np.ndarray,
    truths: Sequence[np.ndarray],
    weights: Rows,
    entity_ids: Sequence[str],
    *,
    scale: float | None = None,
    image_counts: Mapping[str, int] | None = None,
    tail_below: int = TAIL_BELOW,
    head_from: int = HEAD_FROM,
    num_threads: int | None = None,
) -> Result:
    """Returns all metrics of this benchmark, see the module.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`; n at least 1.
        truths: positions of classes, unique, one array a picture, none empty.
        weights: the classifier's rows, L2-normalised floats `[classes, dim]`.
        entity_ids: the rows' entity ids, unique.
        scale: of the logits; None: no calibration.
        image_counts: entity id to training pictures; a class without any is in no group. None: nothing by frequency.
        tail_below: see `frequency_groups`.
        head_from: see there.
        num_threads: None: one a core.

    Raises:
        UserError: the classes do not fit, see `class_ranks`, or none of them has a count.
        ValueError: a value is not finite.
    """
    ranks = class_ranks(embeddings, weights, truths, entity_ids, num_threads=num_threads)
    first = np.array([one.min() for one in ranks])
    items = {f"accuracy_at_{k}": (first <= k).astype(np.float64) for k in ACCURACY_RANKS}
    items |= {"mean_reciprocal_rank": 1 / first, "map": np.array([average_precision(one) for one in ranks])}
    values = {name: float(one.mean()) for name, one in items.items()}
    counts: dict[str, Any] = {
        "num_pictures": len(ranks),
        "num_labels": sum(map(len, ranks)),
        "num_classes": len(entity_ids),
    }
    drawn: dict[str, figures.Figure] = {}
    if image_counts is not None:
        counted = _have_counts(entity_ids, image_counts)
        groups = frequency_groups(
            np.array([image_counts.get(one, 0) for one in entity_ids]), tail_below=tail_below, head_from=head_from
        )
        groups[~counted] = ""
        counts["num_classes_without_count"] = int((~counted).sum())
        of_label = groups[np.concatenate(truths)]
        alone = np.concatenate([ranks_without(one, one) for one in ranks])
        for group in GROUPS:
            of_group = alone[of_label == group]
            counts[f"{group}.num_classes"] = int((groups == group).sum())
            counts[f"{group}.num_labels"] = len(of_group)
            if len(of_group):
                measured = {f"{group}.accuracy_at_{k}": (of_group <= k).astype(np.float64) for k in ACCURACY_RANKS}
                measured[f"{group}.mean_reciprocal_rank"] = 1 / of_group
                items |= measured
                values |= {name: float(one.mean()) for name, one in measured.items()}
    if scale is not None:
        confidences = top_probabilities(embeddings, weights, scale, num_threads=num_threads)
        found = calibration(confidences, first == 1)
        values["calibration_error"] = found.error
        counts["calibration"] = {
            "num_pictures": found.num_pictures.tolist(),
            "mean_confidences": found.mean_confidences.tolist(),
            "accuracies": found.accuracies.tolist(),
        }
        drawn["calibration"] = figures.Calibration(
            title=f"expected calibration error {found.error:.3f}",
            confidences=found.mean_confidences,
            accuracies=found.accuracies,
            counts=found.num_pictures,
        )
    return Result(metrics=values, counts=counts, items=items, figures=drawn)


def _have_counts(entity_ids: Sequence[str], image_counts: Mapping[str, int]) -> np.ndarray:
    """Returns whether each class has a count, bool `[classes]`; at least one does."""
    found = np.array([one in image_counts for one in entity_ids])
    if not found.any():
        raise UserError(
            f"none of the {len(entity_ids)} classes, {entity_ids[0]} first, is among the {len(image_counts)} "
            "entities of the vocabulary; name that of the set that the model was trained on"
        )
    return found


def scored_pictures(pictures: Pictures, entity_ids: Sequence[str], *, heldout_entity: bool = False) -> np.ndarray:
    """Returns int64 positions: held-out renderings of seen (or unseen) entities that are among `entity_ids`."""
    known = np.isin(pictures.entity_ids, np.array(entity_ids, dtype=np.str_))
    return np.flatnonzero(pictures.heldout_rendering & (pictures.heldout_entity == heldout_entity) & known)


def classifier_metrics(
    embeddings: np.ndarray,
    pictures: Pictures,
    weights: np.ndarray,
    entity_ids: Sequence[str],
    image_counts: Mapping[str, int] | None = None,
    *,
    scale: float | None = None,
    tail_below: int = TAIL_BELOW,
    head_from: int = HEAD_FROM,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the metrics of a file of pictures, and the counts behind them; no metric when none can be scored.

    Args:
        embeddings: L2-normalised float32 `[n, dim]`, in the order of `pictures`.
        pictures: held-out renderings of seen entities are scored.
        weights: see `entity_metrics`.
        entity_ids: see there.
        image_counts: see there.
        scale: see there.
        tail_below: see `frequency_groups`.
        head_from: see there.
    """
    scored = scored_pictures(pictures, entity_ids)
    asked = int((pictures.heldout_rendering & ~pictures.heldout_entity).sum())
    counts = {"num_pictures": len(scored), "num_out_of_vocabulary": asked - len(scored), "num_classes": len(entity_ids)}
    if len(scored) == 0:
        return {}, counts
    class_of = {entity_id: position for position, entity_id in enumerate(entity_ids)}
    result = entity_metrics(
        embeddings[scored],
        [np.array([class_of[one]]) for one in pictures.entity_ids[scored].tolist()],
        weights,
        entity_ids,
        scale=scale,
        image_counts=image_counts,
        tail_below=tail_below,
        head_from=head_from,
    )
    return dict(result.metrics), {**counts, **result.counts}


def read_vocabulary(path: str | os.PathLike[str]) -> list[Entity]:
    """Returns the entities of a `vocabulary.jsonl`, in the order of its lines.

    Raises:
        UserError: the file is not there, a line lacks a field, or an id stands there twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give --option entities.vocabulary=<vocabulary.jsonl>"
        ) from error
    found: dict[str, Entity] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            one = Entity(
                entity_id=str(row["entity_id"]),
                name=str(row["name"]),
                description=str(row.get("description") or ""),
                image_count=int(row["image_count"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number} is no entity ({type(error).__name__}: {error}); entity_id, name, description "
                "and image_count are needed"
            ) from error
        if one.entity_id in found:
            raise UserError(f"{path}, line {number}: {one.entity_id} stands there twice; ids must be unique")
        found[one.entity_id] = one
    return list(found.values())


def read_i2e(path: Path, split: str = "train") -> tuple[ImageSet, list[tuple[str, ...]]]:
    """Returns the pictures of an I2E set, with transparent parts on white, and the entity ids of each.

    Args:
        path: a folder that `tfds.builder_from_directory` opens.
        split: as in TFDS; a set has one, "train", even where it is not trained on.

    Raises:
        UserError: it cannot be opened, or lacks a feature or the split.
    """
    # TFDS takes a moment to import.
    import tensorflow_datasets as tfds

    if not (path / "manifest.json").exists():
        raise UserError(f"{path} holds no finished I2E set (manifest.json is missing); build it, or let it finish")
    try:
        prepared = PreparedSet(tfds.builder_from_directory(path))
    except Exception as error:  # TFDS raises many kinds for a folder that is half written
        raise UserError(
            f"{path} cannot be read as an I2E set ({error}); build it again, or name a Parquet file"
        ) from error
    image_ids: list[str] = []
    entity_ids: list[tuple[str, ...]] = []

    def note(example: Mapping[str, Any]) -> int:
        image_ids.append(_text(example["image_id"]))
        entity_ids.append(tuple(_text(one) for one in example["entity_ids"]))
        return 0

    found = read_examples(
        "entities", prepared, split, features=("image_id", "entity_ids"), label_of=note, class_names=("",)
    )
    images = dataclasses.replace(found.images, ids=np.array(image_ids, dtype=np.str_), on_white=True)
    return images, entity_ids


@register("entities", version=PROTOCOL_VERSION)
def run(context: Context) -> Result:
    """Accuracy of the entity classifier on a held-out part of an Image-to-Entities set, also by frequency.

    Options: data (a set's folder, or a Parquet file; i2e), split (train), vocabulary (the training set's
    vocabulary.jsonl, for head, middle and tail), tail_below (10) and head_from (100), in training pictures.

    Raises:
        Unavailable: the set is not there, or the model has no text function.
        UserError: the set, the vocabulary or an option is not as it must be.
    """
    data = context.option("data", "i2e")
    split = context.option("split", "train")
    limits = {
        name: _whole_number(context, name, default)
        for name, default in (("tail_below", TAIL_BELOW), ("head_from", HEAD_FROM))
    }
    path = context.folder(data, get="python -m pipeline.build_i2e, on pairs that are not trained on", layout=_LAYOUT)
    asked: list[tuple[str, ...]]
    if path.is_dir():
        images, asked = read_i2e(path, split)
        vocabulary = read_vocabulary(path / "vocabulary.jsonl")
    else:
        pictures = read_pictures(path)
        scored = pictures.heldout_rendering & ~pictures.heldout_entity
        images = pictures.image_set("evaluation")
        asked = [(one,) if of_task else () for one, of_task in zip(pictures.entity_ids.tolist(), scored, strict=True)]
        vocabulary = []
    stated = context.option("vocabulary", "")
    # Counts of the held-out set's own vocabulary would not be those of training.
    image_counts = None
    if stated:
        vocabulary = read_vocabulary(context.data_dir / stated)
        image_counts = {one.entity_id: one.image_count for one in vocabulary}

    classifier = context.model.classifier
    if classifier is not None:
        weights, entity_ids, scale = classifier.weights, list(classifier.entity_ids), float(classifier.scale)
    elif vocabulary:
        entity_ids, scale = [one.entity_id for one in vocabulary], TEXT_SCALE
        weights = context.embed_texts("entities_text", [one.text for one in vocabulary])
    else:
        raise UserError(
            "the model has no classifier, and there is no vocabulary to embed; give --option "
            "entities.vocabulary=<vocabulary.jsonl>"
        )
    if image_counts is not None:
        _have_counts(entity_ids, image_counts)  # before hours of embedding
    class_of = {entity_id: position for position, entity_id in enumerate(entity_ids)}
    embedded = context.embed(images, truth=json.dumps(asked).encode())
    asked = [asked[position] for position in embedded.positions.tolist()]
    known = [np.array(sorted({class_of[one] for one in ids if one in class_of}), np.int64) for ids in asked]
    rows = np.flatnonzero([len(one) > 0 for one in known])
    num_asked = sum(len(ids) > 0 for ids in asked)
    if len(rows) == 0:
        raise UserError(
            f"none of {num_asked} pictures of {path} shows one of the {len(entity_ids)} entities that are classes; use "
            "a part of the set that the model was trained on"
        )
    vectors, truths = take_rows(embedded.vectors, rows), [known[row] for row in rows.tolist()]
    result = entity_metrics(vectors, truths, weights, entity_ids, scale=scale, image_counts=image_counts, **limits)
    names = {one.entity_id: one.name for one in vocabulary}
    num_labels = sum(len(set(ids)) for ids in asked)
    return dataclasses.replace(
        result,
        counts={
            **result.counts,
            "num_out_of_vocabulary": num_asked - len(rows),
            "num_labels_out_of_vocabulary": num_labels - int(result.counts["num_labels"]),
            "num_unreadable": embedded.num_unreadable,
        },
        settings={
            "split": split if path.is_dir() else "held-out renderings of seen entities",
            "classes": "classifier" if classifier is not None else "name, description",
            "classes_hash": hash_of(entity_ids),
            "scale": scale,
            "num_bins": NUM_BINS,
            **(limits if image_counts is not None else {}),
            "image_counts_hash": None if image_counts is None else hash_of(map(str, sorted(image_counts.items()))),
        },
        figures={**result.figures, **_map(vectors, truths, [names.get(one, one) for one in entity_ids])},
        not_measured=() if image_counts is not None else [_NO_COUNTS],
    )


def _map(vectors: np.ndarray, truths: Sequence[np.ndarray], class_names: Sequence[str]) -> dict[str, figures.Figure]:
    """Returns a map of the pictures of the most frequent true classes; none where there are too few pictures."""
    firsts = np.array([one[0] for one in truths])
    uses = np.bincount(firsts, minlength=len(class_names))
    # A stable sort: of equally frequent classes the first ones.
    shown = np.argsort(-uses, kind="stable")[:NUM_MAPPED]
    rows = np.flatnonzero(np.isin(firsts, shown))
    if len(rows) < 3:
        return {}
    return {
        "map": figures.Map(
            title=f"pictures of the {min(NUM_MAPPED, int((uses > 0).sum()))} most frequent entities, by t-SNE",
            vectors=vectors[rows],
            groups=[class_names[one] for one in firsts[rows].tolist()],
        )
    }


class _Ordered:
    """The rows of an array in another order; none is copied before it is read."""

    def __init__(self, rows: Rows, order: np.ndarray) -> None:
        self._rows, self._order = rows, order
        self.shape = rows.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float32 `[rows, dim]`."""
        return take_rows(self._rows, self._order[rows])


def _check_classes(embeddings: np.ndarray, weights: Rows, entity_ids: Sequence[str]) -> None:
    if weights.shape[0] != len(entity_ids):
        raise UserError(f"there are {weights.shape[0]} classes and {len(entity_ids)} entity ids; give one id a class")
    if embeddings.shape[1] != weights.shape[1]:
        raise UserError(
            f"embeddings have width {embeddings.shape[1]} and classes {weights.shape[1]}; use those of one model"
        )
    if len(set(entity_ids)) != len(entity_ids):
        raise UserError(f"{len(entity_ids)} classes have {len(set(entity_ids))} entity ids; ids must be unique")


def _whole_number(context: Context, name: str, default: int) -> int:
    text = context.option(name, str(default))
    if not text.isdecimal():
        raise UserError(f"entities.{name} is {text!r}, it must be a whole number of pictures; {default} is usual")
    return int(text)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
