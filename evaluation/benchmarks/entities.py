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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.metrics.blocks import Rows, take_rows
from evaluation.metrics.classes import (
    HEAD_FROM,
    NUM_BINS,
    TAIL_BELOW,
    calibration,
    class_ranks,
    frequency_groups,
    top_probabilities,
)
from evaluation.metrics.ranks import average_precision, ranks_without
from evaluation.options import Options, option
from evaluation.protocol import Context, Provenance, Result, hash_of, register
from evaluation.report import figures
from evaluation.sets.i2e import read_i2e, read_vocabulary
from evaluation.sets.renderings import Renderings, read_renderings
from pipeline.schema import UserError

PROTOCOL_VERSION = 4
ACCURACY_RANKS = (1, 5)
GROUPS = ("head", "middle", "tail")
NUM_MAPPED = 12  # entities in the map
TEXT_SCALE = 100.0
_NO_COUNTS = (
    "head, middle and tail: they go by the counts of training, which are not known here; give --option "
    "entities.vocabulary=<the training set's vocabulary.jsonl>"
)
_LAYOUT = (
    "an I2E set (dataset_info.json, features.json, i2e-train.tfrecord-*, vocabulary.jsonl), or name a Parquet file"
)


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
        truths: positions of classes, unique, one array per picture, none empty.
        weights: the classifier's rows, L2-normalised floats `[classes, dim]`.
        entity_ids: the rows' entity ids, unique.
        scale: of the logits; None: no calibration.
        image_counts: entity id to training pictures; a class without any is in no group. None: nothing by frequency.
        tail_below: see `frequency_groups`.
        head_from: see there.
        num_threads: None: one per core.

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
        drawn["calibration"] = figures.ReliabilityDiagram(
            title=f"expected calibration error {found.error:.3f}",
            confidences=found.mean_confidences,
            accuracies=found.accuracies,
            counts=found.num_pictures,
        )
    one_each = all(len(one) == 1 for one in ranks)
    return Result(
        metrics=values,
        counts=counts,
        items=items,
        num_items={"calibration_error": len(ranks)},
        chance={"accuracy_at_1": sum(map(len, ranks)) / len(ranks) / len(entity_ids)},
        same_as={"map": "mean_reciprocal_rank"} if one_each else {},
        groups=GROUPS,
        figures=drawn,
    )


def _have_counts(entity_ids: Sequence[str], image_counts: Mapping[str, int]) -> np.ndarray:
    """Returns whether each class has a count, bool `[classes]`; at least one does."""
    found = np.array([one in image_counts for one in entity_ids])
    if not found.any():
        raise UserError(
            f"none of the {len(entity_ids)} classes, {entity_ids[0]} first, is among the {len(image_counts)} "
            "entities of the vocabulary; name that of the set that the model was trained on"
        )
    return found


def scored_pictures(pictures: Renderings, entity_ids: Sequence[str], *, heldout_entity: bool = False) -> np.ndarray:
    """Returns int64 positions: held-out renderings of seen (or unseen) entities that are among `entity_ids`."""
    known = np.isin(pictures.entity_ids, np.array(entity_ids, dtype=np.str_))
    return np.flatnonzero(pictures.heldout_rendering & (pictures.heldout_entity == heldout_entity) & known)


def classifier_metrics(
    embeddings: np.ndarray,
    pictures: Renderings,
    weights: np.ndarray,
    entity_ids: Sequence[str],
    image_counts: Mapping[str, int] | None = None,
    *,
    scale: float | None = None,
    tail_below: int = TAIL_BELOW,
    head_from: int = HEAD_FROM,
) -> Result:
    """Returns what is measured on a file of pictures; no metric when none can be scored.

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
        return Result(metrics={}, counts=counts)
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
    return dataclasses.replace(result, counts={**counts, **result.counts})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntitiesOptions(Options):
    """See `--help`."""

    data: str = option("i2e", help="folder of an Image-to-Entities set, or a Parquet file of pictures")
    split: str = option("train", help="part of the set, as TFDS names it")
    vocabulary: str | None = option(None, help="the training set's vocabulary.jsonl, for head, middle and tail")
    tail_below: int = option(TAIL_BELOW, at_least=0, help="training pictures below which a class is tail")
    head_from: int = option(HEAD_FROM, at_least=0, help="training pictures from which on a class is head")

    def __post_init__(self) -> None:
        super().__post_init__()
        frequency_groups(np.zeros(0), tail_below=self.tail_below, head_from=self.head_from)


@register("entities", version=PROTOCOL_VERSION, options=EntitiesOptions)
def run(context: Context, options: EntitiesOptions) -> Result:
    """Accuracy of the entity classifier on a held-out part of an Image-to-Entities set, also by frequency.

    Raises:
        Unavailable: the set is not there, or the model has no text function.
        UserError: the set, the vocabulary or an option is not as it must be.
    """
    split = options.split
    limits = {"tail_below": options.tail_below, "head_from": options.head_from}
    path = context.folder(
        options.data, get="python -m pipeline.build_i2e, on pairs that are not trained on", layout=_LAYOUT
    )
    asked: list[tuple[str, ...]]
    if path.is_dir():
        images, asked = read_i2e(path, split)
        vocabulary = read_vocabulary(path / "vocabulary.jsonl")
    else:
        pictures = read_renderings(path)
        scored = pictures.heldout_rendering & ~pictures.heldout_entity
        images = pictures.image_set("evaluation")
        asked = [(one,) if of_task else () for one, of_task in zip(pictures.entity_ids.tolist(), scored, strict=True)]
        vocabulary = []
    # Counts of the held-out set's own vocabulary would not be those of training.
    image_counts = None
    if options.vocabulary is not None:
        vocabulary = read_vocabulary(context.data_dir / options.vocabulary)
        image_counts = {one.entity_id: one.image_count for one in vocabulary}

    data: list[Provenance] = []
    settings: dict[str, Any] = {"split": split if path.is_dir() else "held-out renderings of seen entities"}
    classifier = context.model.classifier
    if classifier is not None:
        weights, entity_ids, scale = classifier.weights, list(classifier.entity_ids), float(classifier.scale)
        settings["classes"] = "classifier"
    elif vocabulary:
        entity_ids, scale = [one.entity_id for one in vocabulary], TEXT_SCALE
        texts = context.embed_texts("entities_text", [one.text for one in vocabulary])
        weights = texts.vectors
        data.append(texts.provenance)
        settings |= {"classes": "name, description", "classes_hash": hash_of(entity_ids), "scale": scale}
    else:
        raise UserError(
            "the model has no classifier, and there is no vocabulary to embed; give --option "
            "entities.vocabulary=<vocabulary.jsonl>"
        )
    if image_counts is not None:
        _have_counts(entity_ids, image_counts)  # before hours of embedding
    class_of = {entity_id: position for position, entity_id in enumerate(entity_ids)}
    embedded = context.embed(images, truth=json.dumps(asked).encode())
    data.append(embedded.provenance)
    if image_counts is not None:
        data += [_by_frequency(group, image_counts, options) for group in GROUPS]
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
        data=data,
        settings=settings | {"num_bins": NUM_BINS},
        model={} if classifier is None else {"classifier": {"scale": scale, "classes_hash": hash_of(entity_ids)}},
        figures={**result.figures, **_map(vectors, truths, [names.get(one, one) for one in entity_ids])},
        not_measured=() if image_counts is not None else [_NO_COUNTS],
    )


def _by_frequency(group: str, image_counts: Mapping[str, int], options: EntitiesOptions) -> Provenance:
    """Returns what decides which classes are in a group: the counts of training, and both limits."""
    return Provenance(
        name="training counts",
        part=group,
        ids=hash_of(map(str, sorted(image_counts.items()))),
        truth=hash_of([f"tail below {options.tail_below}", f"head from {options.head_from}"]),
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
